"""Test whether a difference between our runs and a printed number exceeds the noise.

With seeds on both sides: Welch's interval, which does not assume equal deviations,

    mean(ours) - mean(theirs)  ±  t(0.975, df) * sqrt(s1²/n1 + s2²/n2),
    df = (s1²/n1 + s2²/n2)² / ((s1²/n1)²/(n1-1) + (s2²/n2)²/(n2-1))        (Welch 1947; Satterthwaite)

Most papers print one value. If the source states the deviation over seeds, it is treated as known, with infinitely many
degrees of freedom, and also used for our side if we have one seed; the basis then says so. If neither side's noise is
known, there is no interval.

One value of theirs with unknown deviation and several of ours give no interval either, because our noise alone would
make the paper's number look exact.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LEVEL = 0.95

Basis = Literal["Welch, seeds on both sides", "deviation as the source gives it", "one seed, deviation of the source"]


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a difference."""

    low: float
    high: float
    basis: Basis

    @property
    def outside(self) -> bool:
        """Return whether the difference exceeds the noise."""
        return self.low > 0 or self.high < 0


def signed(value: float, digits: int) -> str:
    """Return the value with its sign (a real minus); a value that rounds to 0 has no sign."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def plus_minus(deviation: float | None, digits: int) -> str:
    """Return " ± deviation"; empty without one."""
    return "" if deviation is None else f" ± {deviation:.{digits}f}"


@dataclass(frozen=True)
class Values:
    """The values of one metric over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Return the sample standard deviation; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Measured(Values):
    """Our measurements of one metric of one encoder under one protocol, over seeds, in the metric's unit."""

    runs: tuple[str, ...] = ()  # directories below the runs root, in the order of `values`
    digits: int = 1  # decimals shown: of the metric's quantity, or of the number printed by a paper
    spread_digits: int = 1  # decimals shown of the deviation
    data: str = ""  # the data set

    def text(self) -> str:
        """Return mean and deviation; percent have one decimal, as in papers."""
        return f"{self.mean:.{self.digits}f}" + plus_minus(self.deviation, self.spread_digits)

    def to_json(self) -> dict[str, Any]:
        """Return the unrounded numbers as JSON values."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "values": list(self.values),
            "data": self.data,
            "runs": list(self.runs),
        }


@dataclass(frozen=True)
class Sample(Values):
    """One side of a comparison; the deviation of a single value may be known from its source."""

    known: float | None = None  # deviation over seeds of a printed value


def interval(ours: Sample, theirs: Sample) -> Interval | None:
    """Return the interval of `ours - theirs`; None if the noise of a side is unknown."""
    one = _part(ours, theirs.known)
    other = _part(theirs, theirs.known)
    if one is None or other is None:
        return None
    error = math.sqrt(one[0] + other[0])
    reach = quantile(_freedom([one, other])) * error
    difference = ours.mean - theirs.mean
    return Interval(difference - reach, difference + reach, _basis(ours, theirs))


def _part(sample: Sample, known: float | None) -> tuple[float, float] | None:
    """Return the variance of a mean and its degrees of freedom."""
    count, spread = len(sample.values), sample.deviation
    if spread is not None:
        return spread**2 / count, count - 1
    return None if known is None else (known**2 / count, math.inf)


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Return the degrees of freedom of the difference (Satterthwaite)."""
    below = sum(variance**2 / freedom for variance, freedom in parts)
    return sum(variance for variance, _ in parts) ** 2 / below if below else math.inf


def _basis(ours: Sample, theirs: Sample) -> Basis:
    if ours.deviation is None:
        return "one seed, deviation of the source"
    return "Welch, seeds on both sides" if theirs.deviation is not None else "deviation as the source gives it"


def quantile(freedom: float) -> float:
    """Return Student's t at 97.5 %; with infinitely many degrees of freedom, the normal distribution's 1.96."""
    if math.isinf(freedom):
        return statistics.NormalDist().inv_cdf(0.5 + LEVEL / 2)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))
