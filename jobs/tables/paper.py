"""Papers: reference numbers as printed by their sources, each with its protocol.

    mimbench papers list          every table by name
    mimbench papers check         check every file: keys, names of recipes and protocols, unused values
    mimbench table NAME           a table beside our own runs (jobs/tables/matching.py)

A paper is a TOML file in `jobs/papers/`. It holds protocols and tables. A protocol has settings under the names in our
runs (`pretrain.` for the pretraining, `eval.` for the evaluation, then a dotted key of the config or a fact of
`result.json`). A table has columns and rows. A reference cell takes the entries of its column and its row; the row has
priority:

    is           settings a run must have to belong in this cell: method, size, the varied setting of an ablation
    pretraining  protocol of the pretraining; protocol: of the evaluation; facts: further settings
    unknown      keys that the source does not state (then the protocol has `known = false`)
    recipe, recipes, overrides   how to fill the cell: recipe of the evaluation, of the pretraining by column, key=value
    seeds, deviation             several values; the standard deviation over seeds if the source states it
    unused       why none of our runs can fill the cell; the value is shown and never compared

Numbers keep their digits: 83.20 stays 83.20. Reads no runs and does not import torch.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PAPERS = Path(__file__).parents[1] / "papers"
SCHEMA = 1


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Entry):
    """The settings of a protocol in two parts: of the pretraining and of the evaluation."""

    pretrain: dict[str, Any] = Field(default_factory=dict)
    eval: dict[str, Any] = Field(default_factory=dict)


PRETRAINING, EVALUATION = PARTS = tuple(Settings.model_fields)  # the first words of the dotted keys of settings


class Protocol(Settings):
    """Settings of printed numbers; `extends` names another protocol, of another paper as `paper/name`."""

    extends: str | None = None
    source: str = ""
    known: bool = True
    unknown: tuple[str, ...] = ()
    note: str = ""
    overrides: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return the settings by dotted key."""
        return flat({part: getattr(self, part) for part in PARTS})


class _Part(_Entry):
    """The common fields of columns and rows."""

    is_: dict[str, Any] = Field(default_factory=dict, alias="is")
    protocol: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    recipe: str | None = None
    unused: str = ""


class Column(_Part):
    """One column with its metric."""

    key: str
    title: str
    metric: str
    unit: str = "%"


class Row(_Part):
    """One row: values by column key."""

    label: str
    values: dict[str, Decimal] = Field(default_factory=dict)
    seeds: dict[str, tuple[Decimal, ...]] = Field(default_factory=dict)
    deviation: dict[str, Decimal] = Field(default_factory=dict)
    pretraining: str | None = None
    unknown: tuple[str, ...] = ()
    recipes: dict[str, str] = Field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    pretrain_overrides: tuple[str, ...] = ()
    note: str = ""


class Table(_Entry):
    """A table of a paper."""

    title: str
    source: str
    url: str = ""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


class Paper(_Entry):
    """The content of one file."""

    schema_: int = Field(alias="schema")
    title: str
    url: str
    protocols: dict[str, Protocol] = Field(default_factory=dict)
    tables: dict[str, Table]


@dataclass(frozen=True)
class Reference:
    """One printed number, with everything its paper states about it."""

    table: str  # "crossmae/table1"
    row: str
    column: str  # key
    metric: str
    value: Decimal  # with several seeds the mean, with the digits of one value
    seeds: tuple[float, ...]
    deviation: float | None  # over seeds, as stated by the source for one value
    select: Mapping[str, Any]  # settings a run must have
    facts: Mapping[str, Any]  # settings of the protocol
    unknown: tuple[str, ...]  # keys that the source does not state
    notes: tuple[str, ...]
    unused: str
    recipe: str | None
    overrides: tuple[str, ...]
    pretraining: str | None  # recipe
    pretrain_overrides: tuple[str, ...]

    @property
    def digits(self) -> int:
        """Return the printed number of decimals."""
        return max(0, -int(self.value.as_tuple().exponent))

    @property
    def where(self) -> str:
        """Return the place of the number, for messages."""
        return f"{self.table}, row {self.row!r}, column {self.column!r}"


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys, with numbers as floats."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = _plain(value)
    return leaves


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def load(file: Path) -> Paper:
    """Return the paper in `file`.

    Raises:
        ValueError: if the file is wrong; the message names the file, the entry and the error.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a TOML file: {error}") from error
    try:
        paper = Paper.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{file}: {_first(error)}") from error
    if paper.schema_ != SCHEMA:
        raise ValueError(f"{file} has schema {paper.schema_}, but this mimbench reads {SCHEMA}")
    return paper


def _first(error: ValidationError) -> str:
    """Return the first error of a file and its place; for a misspelt key also the nearest known key."""
    found = min(
        error.errors(), key=lambda one: one["type"] != "extra_forbidden"
    )  # a misspelt key is also reported as missing
    where = ".".join(str(part) for part in found["loc"])
    if found["type"] != "extra_forbidden":
        return f"{where}: {found['msg']}"
    known = {field.alias or name for model in (Paper, Table, Column, Row, Protocol) for name, field in _fields(model)}
    return f"{where} is not a key of a paper" + nearest(str(found["loc"][-1]), known)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    yield from model.model_fields.items()


def nearest(name: str, known: Any, how_many: int = 3) -> str:
    """Return `; did you mean ...?`, or an empty text."""
    near = difflib.get_close_matches(name, list(known), n=how_many)
    return f"; did you mean {' or '.join(near)}?" if near else ""


@cache
def papers(directory: Path = PAPERS) -> Mapping[str, Paper]:
    """Return every paper by name, which is the file's name without `.toml`."""
    return {file.stem: load(file) for file in sorted(directory.glob("*.toml"))}


def tables(directory: Path = PAPERS) -> dict[str, Table]:
    """Return every table by `paper/name`."""
    return {f"{paper}/{name}": table for paper, of in papers(directory).items() for name, table in of.tables.items()}


def find(name: str, directory: Path = PAPERS) -> list[str]:
    """Return the tables for `name`: one table; for `crossmae/table3` its parts table3a to table3f; for `crossmae` all.

    Raises:
        ValueError: if there is none; the message offers the nearest names.
    """
    known = tables(directory)
    if name in known:
        return [name]
    parts = [full for full in known if full[:-1] == name and full[-1].isalpha()]
    found = parts or [full for full in known if full.partition("/")[0] == name]
    if not found:
        short = [full for full in known if full.partition("/")[2] == name]
        if len(short) == 1:
            return short
        hint = f"; did you mean {' or '.join(short)}?" if short else nearest(name, [*known, *papers(directory)])
        raise ValueError(f"unknown table {name!r}{hint or '; `mimbench papers list` lists all'}")
    return found


def protocol(name: str | None, paper: str, directory: Path = PAPERS) -> Protocol:
    """Return the protocol `name` of `paper`, including what it extends; without a name an empty protocol.

    Raises:
        ValueError: if it does not exist or extends itself.
    """
    chain: list[Protocol] = []
    seen: set[str] = set()
    while name is not None:
        paper, _, short = name.rpartition("/") if "/" in name else (paper, "", name)
        full = f"{paper}/{short}"
        if full in seen:
            raise ValueError(f"protocol {full} extends itself")
        seen.add(full)
        known = papers(directory)[paper].protocols if paper in papers(directory) else {}
        if short not in known:
            raise ValueError(f"unknown protocol {full!r}{nearest(short, known)}")
        chain.append(known[short])
        name = chain[-1].extends
    merged = Protocol()
    for one in reversed(chain):
        given = one.model_dump(exclude_unset=True, exclude={"extends", *PARTS})
        settings = {part: _merge(getattr(merged, part), getattr(one, part)) for part in PARTS}
        merged = merged.model_copy(update={**given, **settings})
    return merged


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def references(name: str, directory: Path = PAPERS) -> list[Reference]:
    """Return every number of the table `paper/name`, row by row.

    Raises:
        ValueError: if it refers to something that does not exist.
    """
    table, paper = tables(directory)[name], name.partition("/")[0]
    return [
        _reference(name, paper, row, column, directory)
        for row in table.rows
        for column in table.columns
        if column.key in row.values or column.key in row.seeds
    ]


def _reference(name: str, paper: str, row: Row, column: Column, directory: Path) -> Reference:
    seeds = row.seeds.get(column.key, ())
    value = row.values.get(column.key)
    if value is None:
        value = (sum(seeds, Decimal(0)) / len(seeds)).quantize(seeds[0])
    before = protocol(row.pretraining, paper, directory)
    after = protocol(row.protocol or column.protocol, paper, directory)
    select = flat(column.is_) | flat(row.is_)
    unknown = tuple(key for key in dict.fromkeys((*before.unknown, *after.unknown, *row.unknown)) if key not in select)
    facts = before.facts() | after.facts() | flat(column.facts) | flat(row.facts)
    deviation = row.deviation.get(column.key)
    return Reference(
        table=name,
        row=row.label,
        column=column.key,
        metric=column.metric,
        value=value,
        seeds=tuple(float(seed) for seed in seeds),
        deviation=None if deviation is None else float(deviation),
        select=select,
        facts={key: value for key, value in facts.items() if key not in select and key not in unknown},
        unknown=unknown,
        notes=tuple(note for note in (row.note, after.note) if note),
        unused=row.unused or column.unused,
        recipe=row.recipe or column.recipe,
        overrides=(*after.overrides, *row.overrides),
        pretraining=row.recipes.get(column.key),
        pretrain_overrides=row.pretrain_overrides,
    )
