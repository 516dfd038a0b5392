"""What all charts of the report share: the frame, scales with round ticks, and a style for each encoder.

No two encoders of a report have the same colour. From the seventh on, colours are generated and the marks and dashes
change too, because more than a few hues are hard to tell apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mimbench.engine.run.task import Metric
from mimbench.jobs.runs.encoders import Encoder

WIDTH, HEIGHT = 440, 256  # size of the drawing, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 48, 422, 10, 212  # edges of the plot in the drawing
LEFT_OF_DOTS, LEVEL = 90, 36  # overview: width of the names, height of a line
NAMED = 6  # colours that the page chooses by hand, beside that of the first encoder from scratch
MARKS = ("circle", "square", "diamond", "triangle")  # of dots: one for each `NAMED` encoders, then again
GOLDEN_ANGLE = 137.508  # degrees between the hues of two generated colours
PERCENT_SPAN = 10.0  # points that an axis in % covers at least, so that small differences look small


@dataclass(frozen=True)
class Tick:
    """A grid line: position in the drawing and label."""

    at: float
    text: str


@dataclass(frozen=True)
class Legend:
    """The name of a series with its last value."""

    label: str
    style: Style
    last: str


class Style(NamedTuple):
    """How an encoder is drawn in all charts."""

    colour: int  # its own: 0 for the first encoder from scratch
    scratch: bool = False  # hollow dots and dashed lines

    @property
    def css(self) -> str:
        """Return the classes of its marks."""
        group = max(self.colour - 1, 0) // NAMED
        return f"s{self.colour}" + (" scratch" if self.scratch else "") + (f" d{group % 4}" if group else "")

    @property
    def mark(self) -> str:
        """Return the shape of its dots."""
        return MARKS[max(self.colour - 1, 0) // NAMED % len(MARKS)]


def styles(encoders: Iterable[Encoder]) -> dict[Encoder, Style]:
    """Return the style of each encoder: those from scratch first, the others in the given order."""
    different = sorted(dict.fromkeys(encoders), key=lambda encoder: bool(encoder.origin))
    numbers = itertools.count(0 if different and not different[0].origin else 1)
    return {encoder: Style(next(numbers), not encoder.origin) for encoder in different}


def generated_hues(styles: Iterable[Style]) -> dict[int, float]:
    """Return the hue, in degrees, of each colour that the page does not name."""
    return {one.colour: round(one.colour * GOLDEN_ANGLE % 360, 1) for one in styles if one.colour > NAMED}


def labels(encoders: Iterable[Encoder]) -> dict[Encoder, str]:
    """Return the name of each encoder in legends, with its architecture if there are several."""
    different = list(dict.fromkeys(encoders))
    several = len({encoder.architecture for encoder in different}) > 1
    return {encoder: f"{encoder.name}, {encoder.architecture}" if several else encoder.name for encoder in different}


@dataclass(frozen=True)
class Scale:
    """Maps data `low`..`high` to drawing `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    step: float  # between ticks

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, rounded: bool, percent: bool = False) -> Scale:
        """Return a scale that covers `values`, extended to whole ticks if `rounded`.

        `percent`: the values are percent, so the scale covers at least `PERCENT_SPAN` points within 0 to 100.
        """
        low, high = min(values), max(values)
        if percent and high - low < PERCENT_SPAN:
            low = min(max((low + high - PERCENT_SPAN) / 2, 0.0), 100.0 - PERCENT_SPAN)
            low, high = min(low, *values), max(low + PERCENT_SPAN, *values)
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
        return tuple(Tick(round(self(n * step), 1), number(n * step, step)) for n in range(first, last + 1))


def tick_step(low: float, high: float, most: int = 5) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, ... that needs at most `most` steps from `low` to `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def number(value: float, step: float) -> str:
    """Return the label of a tick."""
    if abs(value) >= 10_000 or step >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.{max(0, -math.floor(math.log10(step)))}f}"


def is_percent(metric: Metric) -> bool:
    """Return whether a metric is drawn on an axis of percent."""
    return metric.quantity.unit == "%"
