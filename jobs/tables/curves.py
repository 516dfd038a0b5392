"""Line charts as plain numbers: SVG paths and legends, which the report's template puts on the page.

SVG is written directly, not by matplotlib: a chart must follow the reader's colour scheme, print sharply, and take only
kilobytes in a file with dozens of charts.

An encoder has the same style in every chart (drawing.py). A noisy series is drawn twice: faint as measured, and its
moving average on top; the vertical axis fits the average, so that an initial spike does not flatten the rest.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mimbench.jobs.runs.encoders import Encoder, digest
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import known, makes_encoders, metric_of
from mimbench.jobs.tables.drawing import BOTTOM, LEFT, RIGHT, TOP, Legend, Scale, Style, Tick, is_percent, labels
from mimbench.jobs.tables.table import data_names, protocol_of

NOISY = 40  # series with at least this many points are smoothed
MOST = 400  # most points drawn of a series
POINTS = 20_000  # most points of a chart: those of many series are drawn with fewer
TRAINING_LOSS = "training loss"  # every training records it and the gradient norm
SWEEP = "a sweep"  # marks the task that the runs of a sweep share
X_NAMES = {"epoch": "epoch", "step": "optimiser step"}


class Point(NamedTuple):
    """One measurement."""

    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """The measurements of one encoder: one list of points for each seed."""

    label: str
    style: Style
    seeds: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Line:
    """One line of the drawing."""

    d: str  # SVG path data
    style: Style
    faint: bool


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


def charts(
    found: Sequence[Record],
    encoders: Mapping[Path, Encoder],
    styles: Mapping[Encoder, Style],
    sweeps: Mapping[Path, str] | None = None,
) -> list[Chart]:
    """Return a chart for every quantity measured more than once, with all encoders that share a task.

    A task here is an evaluation protocol, or a pretraining method with its data, so that a chart is comparable. The
    runs of a sweep, whose protocols all differ, share a chart; `sweeps` has the name of each such run's sweep.
    """
    tasks: dict[tuple[str, ...], list[Record]] = {}
    data = data_names(found)
    for record in found:
        sweep = (sweeps or {}).get(record.run.path)
        tasks.setdefault(_task(record) if sweep is None else (SWEEP, sweep), []).append(record)
    return [
        chart
        for key, task in tasks.items()
        for chart in _charts_of_task(task, data[task[0].run.path], encoders, styles, key[1] if key[0] == SWEEP else "")
    ]


def _task(record: Record) -> tuple[str, ...]:
    if makes_encoders(record.stage):
        return record.stage, str(record.science.get("method.kind")), str(record.science.get("data"))
    return record.stage, record.recipe, digest(protocol_of(record))


def _charts_of_task(
    task: Sequence[Record],
    data: str,
    encoders: Mapping[Path, Encoder],
    styles: Mapping[Encoder, Style],
    sweep: str = "",
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
            y_name, percent = titles.get(metric, ""), is_percent(metric_of(metric))
            title = f"{task[0].recipe} on {data}" + (f", all runs of the sweep {sweep}" if sweep else "")
            alike = "runs" if sweep else "seeds"
            yield draw(title, X_NAMES[x], y_name or metric, series, minor=not y_name, percent=percent, alike=alike)


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


def draw(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    minor: bool = False,
    percent: bool = False,
    alike: str = "seeds",
) -> Chart:
    """Return the chart of `series`, each with at least one point.

    `percent`: its values are percent; `alike`: what the several lines of one series are.
    """
    noisy = any(len(points) >= NOISY for one in series for points in one.seeds)
    smooth = {id(points): moving_average(points) for one in series for points in one.seeds}
    shown = [point for points in smooth.values() for point in points]
    x_scale = Scale.over([0.0, *(point.x for point in shown)], LEFT, RIGHT, rounded=False)
    y_scale = Scale.over([point.y for point in shown], BOTTOM, TOP, rounded=True, percent=percent)
    lines = []
    most = min(MOST, max(2, POINTS // (2 * len(smooth))))
    for one in series:
        for points in one.seeds:
            if len(points) >= NOISY:
                lines.append(Line(_path(points, x_scale, y_scale, most), one.style, faint=True))
            lines.append(Line(_path(smooth[id(points)], x_scale, y_scale, most), one.style, faint=False))
    lines.sort(key=lambda line: not line.faint)  # averages on top
    legend = tuple(Legend(one.label, one.style, _last(one, smooth, alike)) for one in series)
    return Chart(title, x_name, y_name, x_scale.ticks(), y_scale.ticks(), tuple(lines), legend, noisy, minor)


def _last(one: Series, smooth: Mapping[int, Sequence[Point]], alike: str) -> str:
    """Return the last value; with several lines, the mean of the last values."""
    ends = [smooth[id(points)][-1].y for points in one.seeds]
    return f"{sum(ends) / len(ends):.3g}" + (f" (mean of {len(ends)} {alike})" if len(ends) > 1 else "")


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


def _path(points: Sequence[Point], x_scale: Scale, y_scale: Scale, most: int) -> str:
    """Return SVG path data through at most `most` points, including the last one."""
    stride = math.ceil(len(points) / most)
    kept = [*points[:-1:stride], points[-1]]
    return "M" + "L".join(f"{x_scale(point.x):.1f} {y_scale(point.y):.1f}" for point in kept)
