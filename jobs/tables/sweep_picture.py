"""The pictures of a sweep as plain numbers: parallel coordinates, and the metric by the value of each key.

The report's template (sweeps.html.jinja) draws them as SVG that follows the reader's colour scheme. A line of the
parallel coordinates is a setting: it crosses the axis of each key at its value and ends at its metric, better at the
top. The best setting stands out, the others fade by rank; settings that stopped early are dashed and end in a hollow
dot, at the metric of their last rung.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mimbench.jobs.tables.drawing import BOTTOM, LEFT, RIGHT, TOP, Scale, Tick, is_percent, number
from mimbench.jobs.tables.sweep_results import Setting, SweepResult

WIDE, HIGH = 920, 330  # size of the parallel coordinates, in SVG units
FIRST, LAST = 70, 850  # positions of the first and the last axis
UPPER, LOWER = 50, 300  # ends of an axis
LISTED = 8  # most values of a key that are all written at its axis
LOG = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
SHADES = 4  # steps of fading by rank


@dataclass(frozen=True)
class Axis:
    """A vertical axis of the parallel coordinates: its position, its name, and ticks along it."""

    x: float
    name: str
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Line:
    """A setting in the parallel coordinates."""

    d: str  # SVG path data
    css: str
    end: tuple[float, float]
    text: str


@dataclass(frozen=True)
class Dot:
    """A setting in the chart of one key; low and high are the ends of its deviation over seeds."""

    x: float
    y: float
    low: float
    high: float
    css: str
    text: str


@dataclass(frozen=True)
class Panel:
    """The metric by the value of one key."""

    key: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Picture:
    """Everything the template needs to draw one sweep."""

    result: SweepResult
    axes: tuple[Axis, ...]
    lines: tuple[Line, ...]  # the best on top, that is, last
    panels: tuple[Panel, ...]


def picture(result: SweepResult) -> Picture:
    """Return the pictures of a sweep."""
    places = [_places([one.values[index] for one in result.settings]) for index in range(len(result.keys))]
    step = (LAST - FIRST) / len(result.keys)
    axes = [
        Axis(round(FIRST + index * step, 1), key, _ticks(place, LOWER, UPPER))
        for index, (key, place) in enumerate(zip(result.keys, places, strict=True))
    ]
    ends = (UPPER, LOWER) if result.is_better_lower else (LOWER, UPPER)
    scale = Scale.over(
        [one.measured.mean for one in result.settings], *ends, rounded=True, percent=is_percent(result.metric)
    )
    unit = f" ({result.metric.quantity.unit})" if result.metric.quantity.unit else ""
    axes.append(Axis(LAST, f"{result.metric.title}{unit}", scale.ticks()))
    lines = [
        _line(rank, one, [axis.x for axis in axes], places, scale, result)
        for rank, one in reversed(list(enumerate(result.settings)))
    ]
    panels = tuple(_panel(index, key, places[index], result) for index, key in enumerate(result.keys))
    return Picture(result, tuple(axes), tuple(lines), panels)


def _line(
    rank: int, one: Setting, xs: Sequence[float], places: Sequence[dict[str, float]], scale: Scale, result: SweepResult
) -> Line:
    heights = [LOWER + (UPPER - LOWER) * place[value] for place, value in zip(places, one.values, strict=True)]
    points = list(zip(xs, [*heights, scale(one.measured.mean)], strict=True))
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        middle = (x + to_x) / 2
        path.append(f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}")
    return Line(
        "".join(path), _css(rank, one, result), (points[-1][0], round(points[-1][1], 1)), _text(rank, one, result)
    )


def _css(rank: int, one: Setting, result: SweepResult) -> str:
    """Return the classes of a setting: its shade by rank, and whether it stopped early."""
    if rank == 0:
        return "best"
    shade = 1 + rank * SHADES // len(result.settings)
    return f"shade{shade}" + (" early" if one.epochs is not None else "")


def _text(rank: int, one: Setting, result: SweepResult) -> str:
    values = ", ".join(f"{key}={value}" for key, value in zip(result.keys, one.values, strict=True))
    where = f"; {one.where}" if one.where else ""
    return f"{rank + 1}. {values}: {one.text}, {one.seeds} seed{'s' * (one.seeds != 1)}{where}"


def _panel(index: int, key: str, place: dict[str, float], result: SweepResult) -> Panel:
    scale = Scale.over(_reach(result), BOTTOM, TOP, rounded=True, percent=is_percent(result.metric))
    dots = []
    for rank, one in reversed(list(enumerate(result.settings))):
        reach = one.measured.deviation or 0.0
        x = LEFT + 14 + (RIGHT - LEFT - 28) * place[one.values[index]]
        y, low, high = (round(scale(_within(one.measured.mean + sign * reach, result)), 1) for sign in (0, -1, 1))
        dots.append(Dot(round(x, 1), y, low, high, _css(rank, one, result), _text(rank, one, result)))
    return Panel(key, _ticks(place, LEFT + 14, RIGHT - 14, most=6), scale.ticks(), tuple(dots))


def _reach(result: SweepResult) -> list[float]:
    """Return the ends of all deviations over seeds."""
    return [
        _within(one.measured.mean + sign * (one.measured.deviation or 0.0), result)
        for one in result.settings
        for sign in (-1, 1)
    ]


def _within(value: float, result: SweepResult) -> float:
    """Return a value, of percent at most 100 and at least 0."""
    return min(max(value, 0.0), 100.0) if is_percent(result.metric) else value


def _places(values: Sequence[str]) -> dict[str, float]:
    """Return the place of each value on its axis, 0 to 1: by size if all are numbers, else in even steps."""
    different = list(dict.fromkeys(values))
    numbers = _numbers(different)
    if numbers is None:
        return {value: (index + 0.5) / len(different) for index, value in enumerate(different)}
    low, high = min(numbers), max(numbers)
    if low > 0 and high / low >= LOG:
        numbers = [math.log(value) for value in numbers]
        low, high = math.log(low), math.log(high)
    return {
        value: (size - low) / (high - low) if high > low else 0.5
        for value, size in zip(different, numbers, strict=True)
    }


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        found = [float(value) for value in values]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _ticks(place: dict[str, float], start: float, end: float, most: int = LISTED) -> tuple[Tick, ...]:
    """Return ticks at the values; if there are many, at about `most` of them, the first and the last included."""
    ordered = sorted(place, key=lambda value: place[value])
    if len(ordered) > most:
        last = len(ordered) - 1
        ordered = [ordered[round(index * last / (most - 1))] for index in range(most)]
    return tuple(Tick(round(start + (end - start) * place[value], 1), _short(value)) for value in ordered)


def _short(value: str) -> str:
    """Return a value as a tick's label."""
    numbers = _numbers([value])
    if numbers is None:
        return value if len(value) <= 14 else f"{value[:13]}…"
    return number(numbers[0], 1000) if abs(numbers[0]) >= 10_000 else f"{numbers[0]:.3g}"
