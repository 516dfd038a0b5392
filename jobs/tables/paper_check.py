"""`mimbench papers check`: find errors in the files of `jobs/papers/` before a table is wrong.

Every key that a protocol names must be one that a run records: a field of a recipe's config, or a fact of
`result.json`. A run must be able to match each number, or `unused` must say why none can.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mimbench.engine.run.config import leaves
from mimbench.jobs.runs.recipes import recipes
from mimbench.jobs.runs.tasks import makes_encoders, tasks
from mimbench.jobs.tables import paper
from mimbench.jobs.tables.paper import EVALUATION, PAPERS, PRETRAINING, Paper, Reference, Row, Table, nearest

FACTS = {  # facts of `result.json` and of matching that protocols may name, besides the config's fields
    "encoder",
    "pretrain.train_images",
    "pretrain.maps",
    "eval.classes",
    "eval.train_images",
    "eval.val_images",
    "eval.eval_resize",
    "eval.final_norm",
    "eval.patch",
    "eval.epochs",
    "eval.partial",
    "eval.selection",
}


def problems(directory: Path = PAPERS) -> list[str]:
    """Return one line for each error; empty if there are none."""
    found: list[str] = []
    for file in sorted(directory.glob("*.toml")):
        try:
            paper.load(file)
        except ValueError as error:
            found.append(str(error))
    if found:
        return found
    known = keys()
    for name, one in paper.papers(directory).items():
        found += [f"{directory / name}.toml: {line}" for line in _of_paper(name, one, known, directory)]
    return found


@cache
def _recipe_names() -> frozenset[str]:
    return frozenset(recipe.name for recipe in recipes())


@cache
def keys() -> frozenset[str]:
    """Return every key that a protocol may name."""
    parts = {name: PRETRAINING if makes_encoders(name) else EVALUATION for name in tasks()}
    fields = {f"{parts[recipe.stage]}.{leaf.key}" for recipe in recipes() for leaf in leaves(recipe.build())}
    return frozenset(fields | FACTS)


def _of_paper(name: str, one: Paper, known: frozenset[str], directory: Path) -> Iterator[str]:
    used = _used(directory)
    for protocol_name, protocol in one.protocols.items():
        for key in [*protocol.facts(), *protocol.unknown]:
            if key not in known:
                yield f"protocol {protocol_name}: no run records {key}{nearest(key, known)}"
        if not protocol.known and not protocol.unknown:
            yield f"protocol {protocol_name}: known = false, but `unknown` does not list the settings"
        if f"{name}/{protocol_name}" not in used:
            yield f"protocol {protocol_name} is not used by any table"
    for table_name, table in one.tables.items():
        yield from _of_table(table_name, table)
        try:
            found = paper.references(f"{name}/{table_name}", directory)
        except ValueError as error:
            yield f"table {table_name}: {error}"
            continue
        for reference in found:
            yield from _of_reference(reference, known)


def _used(directory: Path) -> set[str]:
    """Return every protocol that is referred to, as `paper/name`."""
    used = set()
    for name, one in paper.papers(directory).items():
        named = [protocol.extends for protocol in one.protocols.values()]
        for table in one.tables.values():
            named += [part for row in table.rows for part in (row.pretraining, row.protocol)]
            named += [column.protocol for column in table.columns]
        used |= {part if "/" in part else f"{name}/{part}" for part in named if part}
    return used


def _of_table(name: str, table: Table) -> Iterator[str]:
    columns = {column.key for column in table.columns}
    if len(columns) < len(table.columns):
        yield f"table {name}: two columns have the same key"
    labels = [row.label for row in table.rows]
    if len(set(labels)) < len(labels):
        yield f"table {name}: two rows have the same label"
    for row in table.rows:
        for key in _keys_of(row) - columns:
            yield f"table {name}, row {row.label!r}: unknown column {key!r}{nearest(key, columns)}"
        if not row.values and not row.seeds:
            yield f"table {name}, row {row.label!r} has no numbers"


def _keys_of(row: Row) -> set[str]:
    return {*row.values, *row.seeds, *row.deviation, *row.recipes}


def _of_reference(reference: Reference, known: frozenset[str]) -> Iterator[str]:
    names = _recipe_names()
    for key in [*reference.select, *reference.facts, *reference.unknown]:
        if key not in known:
            yield f"{reference.where}: no run records {key}{nearest(key, known)}"
    for name in (reference.recipe, reference.pretraining):
        if name and name not in names:
            yield f"{reference.where}: unknown recipe {name!r}{nearest(name, names)}"
    if reference.unused:
        return
    if not reference.select:
        yield f"{reference.where}: neither `is` nor `unused` is given; add one of them"
    if not reference.facts and not reference.unknown:
        yield f"{reference.where}: its protocol is empty"
    if not reference.metric.startswith(tuple(start for task in tasks().values() for start in task.beginnings)):
        yield f"{reference.where}: no run measures {reference.metric!r}; say why with `unused`"
