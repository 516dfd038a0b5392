"""Line charts as plain numbers: ticks, SVG paths and legends, which the report's template puts on the page.

SVG is written directly, not by matplotlib: a chart must follow the reader's colour scheme, print sharply, and take only
kilobytes in a file with dozens of charts.

An encoder has the same colour in every chart. A noisy series is drawn twice: faint as measured, and its
moving average on top; the vertical axis fits the average, so that an initial spike does not flatten the rest.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mimbench.engine.run.task import Metric
from mimbench.jobs.runs.encoders import Encoder, digest
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import columns, known, makes_encoders
from mimbench.jobs.tables.table import Cell, Row, all_columns, protocol_of

WIDTH, HEIGHT = 440, 256  # size of the drawing, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 48, 422, 10, 212  # edges of the plot in the drawing
LEFT_OF_DOTS, LEVEL = 90, 36  # overview: width of the names, height of a line
NOISY = 40  # series with at least this many points are smoothed
MOST = 400  # most points drawn of a series
TRAINING_LOSS = "training loss"  # every training records it and the gradient norm
X_NAMES = {"epoch": "epoch", "step": "optimiser step"}


class Point(NamedTuple):
    """One measurement."""

    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """The measurements of one encoder: one list of points for each seed."""

    label: str
    style: int  # number of the colour and dash; 0 is from scratch
    seeds: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Tick:
    """A grid line: position in the drawing and label."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One line of the drawing."""

    d: str  # SVG path data
    style: int
    faint: bool


@dataclass(frozen=True)
class Legend:
    """The name of a series with its last value."""

    label: str
    style: int
    last: str


@dataclass(frozen=True)
class Dot:
    """One cell of the table: position on the axis and extent of its deviation."""

    x: float
    low: float
    high: float
    y: float
    style: int
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
class Chart:
    """Everything the template needs to draw one chart."""

    title: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    legend: tuple[Legend, ...]
    smoothed: bool
    minor: bool  # a term of the loss, shown among the details

    @property
    def summary(self) -> str:
        """Return a text description of the chart, for screen readers."""
        ends = "; ".join(f"{entry.label} ends at {entry.last}" for entry in self.legend)
        return f"{self.y_name} by {self.x_name}: {ends}."


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


def styles(encoders: Iterable[Encoder]) -> dict[Encoder, int]:
    """Return the style of each encoder in all charts: 0 from scratch, then 1, 2, ... in the given order."""
    different = sorted(dict.fromkeys(encoders), key=lambda encoder: bool(encoder.origin))
    numbers = itertools.count(1)
    return {encoder: next(numbers) if encoder.origin else 0 for encoder in different}


def labels(encoders: Iterable[Encoder]) -> dict[Encoder, str]:
    """Return the name of each encoder in legends, with its architecture if there are several."""
    different = list(dict.fromkeys(encoders))
    several = len({encoder.architecture for encoder in different}) > 1
    return {encoder: f"{encoder.name}, {encoder.architecture}" if several else encoder.name for encoder in different}


def overview(rows: Sequence[Row], styles: Mapping[Encoder, int]) -> Overview | None:
    """Return the rows under the most common protocol as dots from 0 to 100 %; None if there is nothing to compare."""
    shown = [row for row in rows if row.cells and not row.note]
    if len(shown) < 2:
        return None
    name = labels(row.encoder for row in shown)
    scale = _Scale(0, 100, LEFT_OF_DOTS, RIGHT, step=20)
    levels: list[Level] = []
    for key, metric in all_columns(rows).items():
        cells = [(row.cells[key], row.encoder) for row in shown if key in row.cells]
        if not cells or metric.quantity.unit != "%":
            continue
        y = TOP + LEVEL * (len(levels) + 0.5)
        dots = [_dot(cell, scale, y, styles[encoder], name[encoder]) for cell, encoder in cells]
        levels.append(Level(metric.title, y, tuple(dots)))
    if not levels:
        return None
    legend = tuple(Legend(name[row.encoder], styles[row.encoder], "") for row in shown)
    return Overview(tuple(levels), scale.ticks(), TOP + LEVEL * len(levels), legend)


def _dot(cell: Cell, scale: _Scale, y: float, style: int, name: str) -> Dot:
    reach = cell.deviation or 0.0
    return Dot(
        x=round(scale(cell.mean), 1),
        low=round(scale(cell.mean - reach), 1),
        high=round(scale(cell.mean + reach), 1),
        y=y,
        style=style,
        text=f"{name} {cell.text()}",
    )


def scatters(
    rows: Sequence[Row], found: Sequence[Record], encoders: Mapping[Path, Encoder], styles: Mapping[Encoder, int]
) -> list[Scatter]:
    """Return a chart for each metric that is drawn over the hours of pretraining (`Metric.by_cost`).

    Hours are wall time, 0 from scratch; the metric is from the most common protocol. A chart has at least two dots.
    """
    spent: dict[Encoder, list[float]] = {}
    for record in found:
        if makes_encoders(record.stage) and record.result:
            spent.setdefault(encoders[record.run.path], []).append(float(record.result.get("seconds", 0)) / 3600)
    hours = {encoder: sum(times) / len(times) for encoder, times in spent.items()}
    drawn = (_scatter(metric, rows, hours, styles) for metric in columns().values() if metric.by_cost)
    return [one for one in drawn if one is not None]


def _scatter(
    metric: Metric, rows: Sequence[Row], hours: Mapping[Encoder, float], styles: Mapping[Encoder, int]
) -> Scatter | None:
    shown = [row for row in rows if metric.key in row.cells and not row.note]
    shown = [row for row in shown if not row.encoder.origin or row.encoder in hours]
    if len(shown) < 2 or not any(row.encoder in hours for row in shown):
        return None
    cells = [(row.encoder, hours.get(row.encoder, 0.0), row.cells[metric.key]) for row in shown]
    x_scale = _Scale.over([0.0, *(x for _, x, _ in cells)], LEFT, RIGHT, rounded=False)
    y_scale = _Scale.over([cell.mean for _, _, cell in cells], BOTTOM, TOP, rounded=True)
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


def charts(found: Sequence[Record], encoders: Mapping[Path, Encoder], styles: Mapping[Encoder, int]) -> list[Chart]:
    """Return a chart for every quantity measured more than once, with all encoders that share a task.

    A task here is an evaluation protocol, or a pretraining method with its data, so that a chart is comparable.
    """
    tasks: dict[tuple[str, ...], list[Record]] = {}
    for record in found:
        tasks.setdefault(_task(record), []).append(record)
    return [chart for task in tasks.values() for chart in _charts_of_task(task, encoders, styles)]


def _task(record: Record) -> tuple[str, ...]:
    if makes_encoders(record.stage):
        return record.stage, str(record.science.get("method.kind")), record.data
    return record.stage, record.recipe, digest(protocol_of(record))


def _charts_of_task(
    task: Sequence[Record], encoders: Mapping[Path, Encoder], styles: Mapping[Encoder, int]
) -> Iterator[Chart]:
    name = labels(encoders.values())
    measured = {record.run.path: measurements(record.run.metrics) for record in task}
    names = {key for lines in measured.values() for line in lines for key in line}
    titles = _titles(task)
    counts = getattr(known(task[0].stage), "counts", "epochs")
    x = "step" if counts == "steps" or "epoch" not in names else "epoch"
    wanted = [*titles, *sorted(key for key in names if key.startswith("loss_"))]
    for metric in (metric for metric in wanted if metric in names):
        lines: dict[Encoder, list[tuple[Point, ...]]] = {}
        for record in task:
            points = tuple(
                Point(line[x], line[metric]) for line in measured[record.run.path] if x in line and metric in line
            )
            if len(points) > 1:
                lines.setdefault(encoders[record.run.path], []).append(points)
        series = [
            Series(name[encoder], styles[encoder], tuple(lines[encoder])) for encoder in styles if encoder in lines
        ]
        if series:
            title = f"{task[0].recipe} on {task[0].data}"
            y_name = titles.get(metric, "")
            yield draw(title, X_NAMES[x], y_name or metric, series, minor=not y_name)


def _titles(task: Sequence[Record]) -> dict[str, str]:
    """Return the quantities drawn for a task's runs with their axis titles; "" for quantities in the minor charts."""
    described = known(task[0].stage)
    if described is None:
        return {"loss": TRAINING_LOSS, "grad_norm": "", **{key: key for record in task for key in record.metrics}}
    return {
        "loss": TRAINING_LOSS,
        **{curve.key: curve.title for curve in described.curves},
        "grad_norm": "",
        **{metric.key: metric.curve for metric in described.metrics if metric.column != "never"},
    }


def measurements(file: Path) -> list[dict[str, float]]:
    """Return the numbers in each line of a `metrics.jsonl`; empty if the file does not exist.

    An incomplete last line (of a killed run) and values that are not finite are left out.
    """
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = dict(json.loads(text))
        except (ValueError, TypeError):
            continue
        lines.append({key: value for key, value in values.items() if _is_number(value)})
    return lines


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw(title: str, x_name: str, y_name: str, series: Sequence[Series], minor: bool = False) -> Chart:
    """Return the chart of `series`, each with at least one point."""
    noisy = any(len(points) >= NOISY for one in series for points in one.seeds)
    smooth = {id(points): moving_average(points) for one in series for points in one.seeds}
    shown = [point for points in smooth.values() for point in points]
    x_scale = _Scale.over([0.0, *(point.x for point in shown)], LEFT, RIGHT, rounded=False)
    y_scale = _Scale.over([point.y for point in shown], BOTTOM, TOP, rounded=True)
    lines = []
    for one in series:
        for points in one.seeds:
            if len(points) >= NOISY:
                lines.append(Line(_path(points, x_scale, y_scale), one.style, faint=True))
            lines.append(Line(_path(smooth[id(points)], x_scale, y_scale), one.style, faint=False))
    lines.sort(key=lambda line: not line.faint)  # averages on top
    legend = tuple(Legend(one.label, one.style, _last(one, smooth)) for one in series)
    return Chart(title, x_name, y_name, x_scale.ticks(), y_scale.ticks(), tuple(lines), legend, noisy, minor)


def _last(one: Series, smooth: Mapping[int, Sequence[Point]]) -> str:
    """Return the last value; with several seeds, the mean of the last values."""
    ends = [smooth[id(points)][-1].y for points in one.seeds]
    return f"{sum(ends) / len(ends):.3g}" + (f" (mean of {len(ends)} seeds)" if len(ends) > 1 else "")


def moving_average(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the moving average over a twentieth of the series; short series are unchanged."""
    if len(points) < NOISY:
        return tuple(points)
    half = len(points) // 40
    sums = list(itertools.accumulate((point.y for point in points), initial=0.0))
    averaged = []
    for index, point in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)  # symmetric, so that the ends are not biased
        averaged.append(Point(point.x, (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)))
    return tuple(averaged)


@dataclass(frozen=True)
class _Scale:
    """Maps data `low`..`high` to drawing `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    step: float  # between ticks

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, rounded: bool) -> _Scale:
        """Return a scale that covers `values`, extended to whole ticks if `rounded`."""
        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5, high + 0.5
        step = tick_step(low, high)
        if rounded:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high, start, end, step)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> tuple[Tick, ...]:
        """Return ticks at round values within the scale."""
        step = self.step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(Tick(round(self(n * step), 1), _number(n * step, step)) for n in range(first, last + 1))


def tick_step(low: float, high: float, most: int = 5) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, ... that needs at most `most` steps from `low` to `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _number(value: float, step: float) -> str:
    if abs(value) >= 10_000 or step >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.{max(0, -math.floor(math.log10(step)))}f}"


def _path(points: Sequence[Point], x_scale: _Scale, y_scale: _Scale) -> str:
    """Return SVG path data through at most `MOST` points, including the last one."""
    stride = math.ceil(len(points) / MOST)
    kept = [*points[:-1:stride], points[-1]]
    return "M" + "L".join(f"{x_scale(point.x):.1f} {y_scale(point.y):.1f}" for point in kept)
