"""How sure is the result of one run? `mimbench intervals RUN...`, of classifiers with save_predictions=true, and of
every run of a task that resamples its own metrics (`Task.intervals`), such as detection.

    linear_vitb-1a2b3c4d5e  linear_top1 75.93
        other images   73.6 to 78.1   (95 %, 1,400 images resampled 10,000 times)
        other seeds    75.5 ± 0.4     (3 seeds: 75.93, 75.07, 75.50)

Two uncertainties stand side by side, because they are different: the images resampled (a bootstrap: what another sample
of images of the same kind would give for these weights), and the seeds (what training again would give). Accuracy is a
mean over images, so its bootstrap is the binomial distribution, which is drawn exactly. Average precision is no mean
over images: a task counts each image as often as it is drawn, which takes time, so it draws fewer times.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimbench.engine.run.bar import working
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs import predictions, records
from mimbench.jobs.runs.encoders import encoders_of, without
from mimbench.jobs.runs.run_names import path_of
from mimbench.jobs.runs.tasks import tasks

DRAWS = 10_000
TASK_DRAWS = 200  # by default, of a task's own intervals
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A metric of one run in percent, with both uncertainties."""

    run: str
    metric: str
    value: float
    low: float
    high: float
    images: int
    seeds: tuple[float, ...]  # values of all finished runs that differ in the seed alone, this run included
    draws: int = DRAWS

    def as_json(self) -> dict[str, Any]:
        """Return the interval as JSON."""
        return {**asdict(self), "level": LEVEL}

    @property
    def text(self) -> str:
        """Return the interval in lines, as people read it."""
        lines = [
            f"{self.run}  {self.metric} {self.value:.2f}",
            f"    other images   {self.low:.1f} to {self.high:.1f}   "
            f"({LEVEL:.0%}, {self.images:,} images resampled {self.draws:,} times)",
        ]
        if len(self.seeds) > 1:
            mean, deviation = statistics.fmean(self.seeds), statistics.stdev(self.seeds)
            each = ", ".join(f"{value:.2f}" for value in self.seeds)
            lines.append(f"    other seeds    {mean:.1f} ± {deviation:.1f}     ({len(self.seeds)} seeds: {each})")
        else:
            lines.append("    other seeds    unknown        (one seed; `mimbench run RECIPE --seeds 3` runs more)")
        return "\n".join(lines)


def resampled(right: int, images: int, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Return the percentile interval of an accuracy in percent: `right` of `images`, the images resampled."""
    import numpy as np

    drawn = np.random.default_rng(seed).binomial(images, right / images, draws) / images
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return 100 * float(low), 100 * float(high)


def intervals(name: str, root: Path, draws: int | None = None) -> list[Interval]:
    """Return the intervals of a run, or of a file of predictions; `draws` is the number of resamplings.

    Raises:
        ValueError: if there is no such run, or it saved no predictions.
    """
    path = path_of(name, root)
    task = tasks()[RunDir(path).read_about()["stage"]] if (path / "run.json").is_file() else None
    if task is None or task.intervals is None:
        return [_of_accuracy(path, root, draws or DRAWS)]
    found, images = task.intervals(RunDir(path), draws or TASK_DRAWS)
    return [
        Interval(path.name, metric, *spread, images, _seeds(path, metric, root), draws or TASK_DRAWS)
        for metric, spread in found.items()
    ]


def _of_accuracy(path: Path, root: Path, draws: int) -> Interval:
    """Return the interval of a classifier's accuracy."""
    saved = predictions.read(path)
    images, right = len(saved.label), int((saved.guess == saved.label).sum())
    accuracy = 100 * right / images
    measured = _metrics(path)
    metric = next((key for key, value in measured.items() if abs(value - accuracy) < 1e-4), "top-1")
    low, high = resampled(right, images, draws=draws)
    return Interval(saved.run, metric, accuracy, low, high, images, _seeds(path, metric, root), draws)


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


def show(names: Sequence[str], root: Path, as_json: bool, draws: int | None = None) -> None:
    """Print the intervals of the runs."""
    found = []
    for name in names:
        with working(f"{name}: reading its predictions"):
            found += intervals(name, root, draws)
    if as_json:
        from mimbench.jobs.cli.commands import print_json

        print_json([one.as_json() for one in found])
    else:
        print("\n".join(one.text for one in found))
