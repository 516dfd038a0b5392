"""A paper's table with our runs: the text of each cell, footnotes, and the commands that fill empty cells.

    mimbench table crossmae/table2

Built from the references of a paper (paper.py) and the comparisons of matching.py; formats.py writes it. A mean has the
digits of the printed number, its deviation one more. The footnote of a difference states whether the protocol is the
same, the number of seeds and the interval. Works without any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mimbench.engine.run.config import BY_CONTENT, identity, to_text, with_overrides
from mimbench.engine.run.cost import Cost
from mimbench.engine.run.fields import recorded_name
from mimbench.jobs.runs.cost import cost_of
from mimbench.jobs.runs.data_content import Contents
from mimbench.jobs.runs.encoders import without
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.records import GROUPS, Record, groups_of, science_of
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.tables import paper
from mimbench.jobs.tables.matching import Comparison, Group, compare, groups
from mimbench.jobs.tables.paper import Column, Reference
from mimbench.jobs.tables.significance import Sample, plus_minus, signed


@dataclass(frozen=True)
class Cell:
    """One printed number and our measurements for it."""

    reference: Reference
    best: Comparison | None = None  # comparison with the nearest protocol
    others: tuple[Comparison, ...] = ()
    marks: tuple[int, ...] = ()  # footnotes, from 1

    @property
    def printed(self) -> str:
        """Return the number as printed; with several seeds, with their sample deviation."""
        deviation = Sample(self.reference.seeds).deviation if self.reference.seeds else None
        return f"{self.reference.value}" + plus_minus(deviation, self.reference.digits + 1)

    @property
    def ours(self) -> str:
        """Return our mean and deviation over seeds; empty if nothing was measured."""
        return self.best.measured.text() if self.best else ""

    @property
    def difference(self) -> str:
        """Return the signed difference; in parentheses unless the protocols are known to be the same."""
        if self.best is None:
            return ""
        text = signed(self.best.raw_difference, self.reference.digits)
        return text if self.best.verdict.status == "same" else f"({text})"


@dataclass(frozen=True)
class Missing:
    """Cells that one series of commands fills."""

    cells: tuple[str, ...]
    commands: tuple[str, ...]
    cost: Cost | None

    @property
    def text(self) -> str:
        """Return the cost as text."""
        return f"about {self.cost.text} A100 hours, by {self.cost.source}" if self.cost else "cost unknown"


@dataclass(frozen=True)
class PaperTable:
    """A table with everything the formats need."""

    name: str
    paper: str
    title: str
    source: str
    url: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, dict[str, Cell]], ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[Missing, ...]
    left_out: tuple[str, ...] = ()

    @cached_property
    def close(self) -> bool:
        """Return whether a run in the table has no known difference in protocol."""
        cells = [cell for _, row in self.rows for cell in row.values()]
        return any(cell.best and not cell.best.verdict.differs for cell in cells)

    @cached_property
    def measured(self) -> frozenset[str]:
        """Return the columns with measurements of ours."""
        return frozenset(key for _, cells in self.rows for key, cell in cells.items() if cell.best)


@dataclass
class Footnotes:
    """Numbered footnotes; equal texts share a number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> int:
        """Return the number of `text`, from 1."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def heading(column: Column) -> str:
    """Return the column's title, with the unit unless it is percent."""
    return column.title if column.unit in ("%", "") else f"{column.title} ({column.unit})"


def build(name: str, found: Sequence[Record]) -> list[PaperTable]:
    """Return the tables for `name`, with the results of the runs `found`.

    Raises:
        ValueError: if the table is unknown; the message offers the nearest names.
    """
    names = paper.find(name)
    measured, problems = groups(found)
    return [_table(one, measured, problems, found) for one in names]


def touched(found: Sequence[Record]) -> list[PaperTable]:
    """Return every table of every paper in which a run of `found` has a cell."""
    measured, problems = groups(found)
    if not measured:
        return []
    every = (_table(name, measured, problems, found) for name in paper.tables())
    return [table for table in every if table.measured]


def _table(name: str, measured: Sequence[Group], problems: Sequence[str], found: Sequence[Record]) -> PaperTable:
    table, of = paper.tables()[name], paper.papers()[name.partition("/")[0]]
    footnotes = Footnotes()
    cells: dict[str, dict[str, Cell]] = {}
    for reference in paper.references(name):
        cell = _cell(reference, compare(reference, measured), footnotes)
        cells.setdefault(reference.row, {})[reference.column] = cell
    return PaperTable(
        name=name,
        paper=of.title,
        title=table.title,
        source=table.source,
        url=table.url or of.url,
        columns=table.columns,
        rows=tuple((row.label, cells.get(row.label, {})) for row in table.rows),
        footnotes=tuple(footnotes.texts),
        notes=tuple(dict.fromkeys((*_notes(cells), *table.notes, *_unused(cells)))),
        missing=tuple(_missing(cells, {column.key: column.title for column in table.columns}, found)),
        left_out=tuple(problems),
    )


def _cell(reference: Reference, comparisons: Sequence[Comparison], footnotes: Footnotes) -> Cell:
    if not comparisons:
        return Cell(reference)
    best, *others = comparisons
    marks = [footnotes.mark(worth(best))]
    if others:
        marks.append(footnotes.mark(_elsewhere(others)))
    return Cell(reference, best, tuple(others), tuple(marks))


def worth(comparison: Comparison) -> str:
    """Return a sentence on the validity of a difference."""
    count = len(comparison.sample.values)
    seeds = "one seed" if count == 1 else f"{count} seeds"
    verdict, found = comparison.verdict, comparison.interval
    if verdict.status != "same":
        return f"Not comparable: {verdict.text}; {seeds}."
    if found is None:
        alone = "noise of the paper's number unknown" if count > 1 else "noise unknown"
        return f"Same protocol; {seeds}, {alone}."
    digits = comparison.reference.digits + 1
    within = "outside" if found.outside else "within"
    reach = f"{signed(found.low, digits)} to {signed(found.high, digits)}"
    return f"Same protocol; {seeds}; 95 % interval of the difference {reach} ({found.basis}): {within} the noise."


def _elsewhere(others: Sequence[Comparison]) -> str:
    digits = others[0].reference.digits
    shown = [f"{other.sample.mean:.{digits}f} ({other.verdict.text})" for other in others[:3]]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return "Also measured: " + "; ".join(shown) + more + "."


def _notes(cells: dict[str, dict[str, Cell]]) -> list[str]:
    """Return the notes of the paper's entries on their protocols, each with its rows."""
    about: dict[str, dict[str, None]] = {}
    for label, row in cells.items():
        for cell in row.values():
            for note in cell.reference.notes if not cell.reference.unused else ():
                about.setdefault(note, {})[label] = None
    everything = len(cells)
    return [note if len(rows) == everything else f"{', '.join(rows)}: {note}" for note, rows in about.items()]


def _unused(cells: dict[str, dict[str, Cell]]) -> list[str]:
    """Return the numbers that no run can match, with the reasons."""
    reasons: dict[str, dict[str, None]] = {}
    for label, row in cells.items():
        for cell in row.values():
            if cell.reference.unused:
                reasons.setdefault(cell.reference.unused, {})[label] = None
    return [f"Shown, never compared: {', '.join(rows)} ({reason})." for reason, rows in reasons.items()]


def _missing(cells: dict[str, dict[str, Cell]], titles: dict[str, str], found: Sequence[Record]) -> list[Missing]:
    """Return one entry for each series of commands that fills empty cells."""
    wanted: dict[tuple[str, ...], tuple[list[str], Cost | None]] = {}
    for label, row in cells.items():
        for key, cell in row.items():
            if cell.best or cell.reference.unused or not cell.reference.recipe:
                continue
            commands, cost = filling(cell.reference, found)
            name = f"{label}, {titles[key]}" if len(titles) > 1 else label
            wanted.setdefault(commands, ([], cost))[0].append(name)
    return [Missing(tuple(names), commands, cost) for commands, (names, cost) in wanted.items()]


def filling(reference: Reference, found: Sequence[Record]) -> tuple[tuple[str, ...], Cost | None]:
    """Return the commands that fill a cell, and their cost; an existing encoder is used."""
    assert reference.recipe
    evaluation = find(reference.recipe)
    config = with_overrides(evaluation.build(), list(reference.overrides))
    words = ["mimbench run", reference.recipe, *reference.overrides]
    if reference.pretraining is None:
        method = reference.select.get("pretrain.method.kind", "none")
        encoder = [] if method == "none" else [f"checkpoint=FILE  # an encoder pretrained by {method}"]
        return (" ".join([*words, *encoder]),), cost_of(config, evaluation.function)
    recipe = find(reference.pretraining)
    pretraining = with_overrides(recipe.build(), list(reference.pretrain_overrides))
    made = _made_by(reference.pretraining, pretraining, found)
    name = made or _name_of(reference.pretraining, pretraining, recipe.stage)
    own = None if reference.overrides else evaluation.function  # its stated cost holds without overrides
    cost = cost_of(replace(config, encoder=pretraining.encoder), own)
    commands = [" ".join([*words, f"checkpoint={name}"])]
    if made is None:
        before = cost_of(pretraining, None if reference.pretrain_overrides else recipe.function)
        cost = cost + before if cost and before else None
        commands.insert(0, " ".join(["mimbench run", reference.pretraining, *reference.pretrain_overrides]))
    return tuple(commands), cost


def _made_by(recipe: str, config: Any, found: Sequence[Record]) -> str | None:
    """Return the name of a finished run of `config`, on whatever data; None if there is none."""
    about = {"stage": find(recipe).stage, "config": recorded_name(type(config)), GROUPS: groups_of(config)}
    wanted = without(science_of(to_text(config), about), set(BY_CONTENT))
    mine = (record for record in found if record.state == "done" and record.about.get("recipe") == recipe)
    return next((record.name for record in mine if without(record.science, set(BY_CONTENT)) == wanted), None)


def _name_of(recipe: str, config: Any, stage: str) -> str:
    """Return the name that a run of `config` will have; the recipe alone if its data have never been here."""
    content = Contents(runs_root()).of(config, stage).fingerprint
    return recipe if content is None else f"{recipe}-{identity(config, stage, None, content)}"
