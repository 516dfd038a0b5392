"""The table of all runs as one table for each data set and protocol, for terminals and the report.

    for section in sections(table.rows(root)):
        print(section.title, section.caption)

Numbers of two data sets are never in one table, because a reader would compare them. Does not import torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from mimbench.engine.run.task import Metric
from mimbench.jobs.tables.table import Row, all_columns, seeds

if TYPE_CHECKING:
    import rich.console
    import rich.table

NOT_EVALUATED = "Not evaluated yet"
NAME = 32  # width in characters of a line of a name
RECIPE = 24  # width in characters of a line about differences


@dataclass(frozen=True)
class Section:
    """The rows of one data set under one protocol per column."""

    data: str  # the data set; empty for encoders that have not been evaluated
    note: str  # how the protocol differs from the data set's first table
    rows: tuple[Row, ...]
    alone: bool = True  # whether it is the first table of the only data set

    @property
    def title(self) -> str:
        """Return the heading: the data set, and the differences in protocol."""
        return (f"{self.data}, {self.note}" if self.note else self.data) or NOT_EVALUATED

    @cached_property
    def columns(self) -> dict[str, Metric]:
        """Return the columns by key: those measured; for the only data set also those of the most common metrics."""
        measured = {key for row in self.rows for key in row.cells}
        always = self.alone and bool(measured)
        every = all_columns(self.rows)
        return {key: one for key, one in every.items() if key in measured or (always and one.column == "always")}

    @property
    def several_seeds(self) -> bool:
        """Return whether any cell is a mean."""
        return any(len(cell.values) > 1 for row in self.rows for cell in row.cells.values())

    @property
    def caption(self) -> str:
        """Return data set, units and the meaning of ± in one line; empty without results."""
        if not self.data:
            return ""
        spread = f" ± is the standard deviation over {seeds(self.rows)} seeds." if self.several_seeds else ""
        return f"Data: {self.data}. {_units(self.columns.values())}{spread}"


def sections(table: Iterable[Row]) -> list[Section]:
    """Return the tables, in the order of the rows: consecutive rows of one data set and protocol are one table."""
    groups = [(key, tuple(rows)) for key, rows in groupby(table, key=lambda row: (row.data, row.note))]
    alone = len({data for (data, _), _ in groups if data}) == 1
    return [Section(data, note, rows, alone and not note) for (data, note), rows in groups]


def _units(metrics: Iterable[Metric]) -> str:
    """Return a sentence for each unit: `Top-1 accuracy and average precision in %.`"""
    by_unit: dict[str, dict[str, None]] = {}
    for metric in metrics:
        if metric.quantity.name:
            by_unit.setdefault(metric.quantity.unit, {})[metric.quantity.name] = None
    sentences = []
    for unit, names in by_unit.items():
        *first, last = names
        text = f"{', '.join(first)} and {last}" if first else last
        sentences.append(f"{text[0].upper()}{text[1:]}{f' in {unit}' if unit else ''}.")
    return " ".join(sentences)


def render(table: Sequence[Row]) -> rich.console.Group:
    """Return the tables for a terminal, each with its data set as title if there are several."""
    from rich.console import Group

    found = sections(table)
    return Group(*(_render(section, titled=len(found) > 1) for section in found))


def _render(section: Section, titled: bool) -> rich.table.Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(section.title, style="bold") if titled or not section.data else None
    shown = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        title=title,
        title_justify="left",
        caption=Text(section.caption) if section.caption else None,
        caption_justify="left",
    )
    shown.add_column("recipe", no_wrap=True)
    shown.add_column("encoder", no_wrap=True)
    for metric in section.columns.values():  # on a narrow terminal these shrink, with the deviation on a second line
        heading = metric.title.replace("-", "-\n") if section.several_seeds and len(metric.title) > 6 else metric.title
        shown.add_column(heading, justify="right", overflow="fold")
    for row in section.rows:
        numbers = (row.text(key).replace("± ", "±") for key in section.columns)
        style = {"gain": "dim", "scratch": "", "pretrained": "bold"}[row.kind]
        shown.add_row(*map(Text, [*_first_cells(row), *numbers]), style=style)
    return shown


def _first_cells(row: Row) -> list[str]:
    if row.kind == "gain":
        return ["  gain over scratch", ""]
    name, bracket, changes = row.recipe.partition(" (")
    lines = [name[start : start + NAME] for start in range(0, len(name), NAME)]  # a long one must not squeeze numbers
    return ["\n  ".join([*lines, *textwrap.wrap(bracket.strip() + changes, RECIPE)]), row.architecture]
