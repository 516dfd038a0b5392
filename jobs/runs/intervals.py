"""How sure is the accuracy of one run? `mimbench intervals RUN...`, of runs with save_predictions=true.

    linear_vitb-1a2b3c4d5e  linear_top1 75.93
        other images   73.6 to 78.1   (95 %, 1,400 images resampled 10,000 times)
        other seeds    75.5 ± 0.4     (3 seeds: 75.93, 75.07, 75.50)

Two uncertainties stand side by side, because they are different: the images resampled (a bootstrap: what another sample
of images of the same kind would give for these weights), and the seeds (what training again would give). Accuracy is a
mean over images, so its bootstrap is the binomial distribution, which is drawn exactly.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs import predictions, records
from mimbench.jobs.runs.encoders import encoders_of, without
from mimbench.jobs.runs.run_names import path_of

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """The accuracy of one run in percent, with both uncertainties."""

    run: str
    metric: str
    value: float
    low: float
    high: float
    images: int
    seeds: tuple[float, ...]  # values of all finished runs that differ in the seed alone, this run included

    def as_json(self) -> dict[str, Any]:
        """Return the interval as JSON."""
        return {**asdict(self), "level": LEVEL, "draws": DRAWS}

    @property
    def text(self) -> str:
        """Return the interval in lines, as people read it."""
        lines = [
            f"{self.run}  {self.metric} {self.value:.2f}",
            f"    other images   {self.low:.1f} to {self.high:.1f}   "
            f"({LEVEL:.0%}, {self.images:,} images resampled {DRAWS:,} times)",
        ]
        if len(self.seeds) > 1:
            mean, deviation = statistics.fmean(self.seeds), statistics.stdev(self.seeds)
            each = ", ".join(f"{value:.2f}" for value in self.seeds)
            lines.append(f"    other seeds    {mean:.1f} ± {deviation:.1f}     ({len(self.seeds)} seeds: {each})")
        else:
            lines.append("    other seeds    unknown        (one seed; `mimbench run RECIPE --seeds 3` runs more)")
        return "\n".join(lines)


def resampled(right: int, images: int, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of an accuracy in percent: `right` of `images`, the images resampled."""
    import numpy as np

    draws = np.random.default_rng(seed).binomial(images, right / images, DRAWS) / images
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return 100 * float(low), 100 * float(high)


def interval(name: str, root: Path) -> Interval:
    """Return the interval of a run, or of a file of predictions.

    Raises:
        ValueError: if there is no such run, or it saved no predictions.
    """
    path = path_of(name, root)
    saved = predictions.read(path)
    images, right = len(saved.label), int((saved.guess == saved.label).sum())
    accuracy = 100 * right / images
    measured = _metrics(path)
    metric = next((key for key, value in measured.items() if abs(value - accuracy) < 1e-4), "top-1")
    low, high = resampled(right, images)
    return Interval(saved.run, metric, accuracy, low, high, images, _seeds(path, metric, root))


def _metrics(path: Path) -> Mapping[str, float]:
    return records.record_of(RunDir(path)).metrics if path.is_dir() else {}


def _seeds(path: Path, metric: str, root: Path) -> tuple[float, ...]:
    """Return the metric of all finished runs of the same encoder under the same protocol."""
    if not path.is_dir():
        return ()
    found = records.read(root)
    encoders = encoders_of(found)
    mine = next((record for record in found if record.run.path.resolve() == path.resolve()), None)
    if mine is None:
        return ()
    protocol = without(mine.science, {"seed", "checkpoint", "encoder"})
    same = (
        record
        for record in found
        if metric in record.metrics
        and encoders[record.run.path] == encoders[mine.run.path]
        and without(record.science, {"seed", "checkpoint", "encoder"}) == protocol
    )
    return tuple(record.metrics[metric] for record in same)


def show(names: Sequence[str], root: Path, as_json: bool) -> None:
    """Print the intervals of the runs."""
    found = [interval(name, root) for name in names]
    if as_json:
        from mimbench.jobs.cli.commands import print_json

        print_json([one.as_json() for one in found])
    else:
        print("\n".join(one.text for one in found))
