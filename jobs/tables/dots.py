"""Charts with a dot for each encoder: the table of a data set at a glance, and results by the cost of pretraining.

Bars through dots are the deviation over seeds. Each chart shows one data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.engine.run.task import Metric
from mimbench.jobs.runs.encoders import Encoder
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import columns, makes_encoders
from mimbench.jobs.tables.drawing import (
    BOTTOM,
    LEFT,
    LEFT_OF_DOTS,
    LEVEL,
    RIGHT,
    TOP,
    Legend,
    Scale,
    Style,
    Tick,
    is_percent,
    labels,
)
from mimbench.jobs.tables.sections import Section
from mimbench.jobs.tables.significance import Measured
from mimbench.jobs.tables.table import Row


@dataclass(frozen=True)
class Dot:
    """One cell of the table: position on the axis and extent of its deviation."""

    x: float
    low: float
    high: float
    y: float
    style: Style
    text: str


@dataclass(frozen=True)
class Level:
    """One column of the table, as a line of dots."""

    name: str
    y: float
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Overview:
    """The table at a glance: a line for each metric, a dot for each encoder."""

    levels: tuple[Level, ...]
    ticks: tuple[Tick, ...]
    bottom: float
    legend: tuple[Legend, ...]

    @property
    def summary(self) -> str:
        """Return a text description of the chart, for screen readers."""
        return " ".join(f"{level.name}: {', '.join(dot.text for dot in level.dots)}." for level in self.levels)


@dataclass(frozen=True)
class Scatter:
    """Results against the cost of pretraining: a dot for each encoder."""

    y_name: str  # "Box AP"
    unit: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    legend: tuple[Legend, ...]

    @property
    def summary(self) -> str:
        """Return a text description of the chart, for screen readers."""
        return "; ".join(dot.text for dot in self.dots) + "."


def overview(section: Section, styles: Mapping[Encoder, Style]) -> Overview | None:
    """Return the rows of one table as dots from 0 to 100 %; None if there is nothing to compare."""
    shown = [row for row in section.rows if row.cells]
    if len(shown) < 2:
        return None
    name = labels(row.encoder for row in shown)
    scale = Scale(0, 100, LEFT_OF_DOTS, RIGHT, step=20)
    levels: list[Level] = []
    for key, metric in section.columns.items():
        cells = [(row.cells[key], row.encoder) for row in shown if key in row.cells]
        if not cells or not is_percent(metric):
            continue
        y = TOP + LEVEL * (len(levels) + 0.5)
        dots = [_dot(cell, scale, y, styles[encoder], name[encoder]) for cell, encoder in cells]
        levels.append(Level(metric.title, y, tuple(dots)))
    if not levels:
        return None
    legend = tuple(Legend(name[row.encoder], styles[row.encoder], "") for row in shown)
    return Overview(tuple(levels), scale.ticks(), TOP + LEVEL * len(levels), legend)


def _dot(cell: Measured, scale: Scale, y: float, style: Style, name: str) -> Dot:
    reach = cell.deviation or 0.0
    return Dot(
        x=round(scale(cell.mean), 1),
        low=round(scale(cell.mean - reach), 1),
        high=round(scale(cell.mean + reach), 1),
        y=y,
        style=style,
        text=f"{name} {cell.text()}",
    )


def hours_of(found: Sequence[Record], encoders: Mapping[Path, Encoder]) -> dict[Encoder, float]:
    """Return the hours of wall time of each encoder's pretraining, the mean over seeds."""
    spent: dict[Encoder, list[float]] = {}
    for record in found:
        if makes_encoders(record.stage) and record.result:
            spent.setdefault(encoders[record.run.path], []).append(float(record.result.get("seconds", 0)) / 3600)
    return {encoder: sum(times) / len(times) for encoder, times in spent.items()}


def scatters(section: Section, hours: Mapping[Encoder, float], styles: Mapping[Encoder, Style]) -> list[Scatter]:
    """Return a chart for each metric of a table that is drawn over the hours of pretraining (`Metric.by_cost`).

    Hours are 0 from scratch. A chart has at least two dots.
    """
    drawn = (_scatter(metric, section.rows, hours, styles) for metric in columns().values() if metric.by_cost)
    return [one for one in drawn if one is not None]


def _scatter(
    metric: Metric, rows: Sequence[Row], hours: Mapping[Encoder, float], styles: Mapping[Encoder, Style]
) -> Scatter | None:
    shown = [row for row in rows if metric.key in row.cells]
    shown = [row for row in shown if not row.encoder.origin or row.encoder in hours]
    if len(shown) < 2 or not any(row.encoder in hours for row in shown):
        return None
    cells = [(row.encoder, hours.get(row.encoder, 0.0), row.cells[metric.key]) for row in shown]
    x_scale = Scale.over([0.0, *(x for _, x, _ in cells)], LEFT, RIGHT, rounded=False)
    reached = [cell.mean + sign * (cell.deviation or 0.0) for _, _, cell in cells for sign in (-1, 1)]
    y_scale = Scale.over(reached, BOTTOM, TOP, rounded=True, percent=is_percent(metric))
    name = labels(encoder for encoder, _, _ in cells)
    dots = []
    for encoder, x, cell in cells:
        reach = cell.deviation or 0.0
        text = f"{name[encoder]}: {x:.3g} h, {metric.title} {cell.text()}"
        high, low = y_scale(cell.mean + reach), y_scale(cell.mean - reach)
        at = (round(x_scale(x), 1), round(low, 1), round(high, 1), round(y_scale(cell.mean), 1))
        dots.append(Dot(at[0], at[1], at[2], at[3], styles[encoder], text))
    legend = tuple(Legend(name[encoder], styles[encoder], cell.text()) for encoder, _, cell in cells)
    name_and_unit = (metric.title[0].upper() + metric.title[1:], metric.quantity.unit)
    return Scatter(*name_and_unit, x_scale.ticks(), y_scale.ticks(), tuple(dots), legend)
