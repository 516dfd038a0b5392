"""What a sweep found: its settings ranked, the best first, with the seeds that each rests on and where runs stopped.

    for found in sweeps(root, records):
        found.settings[0].values, found.settings[0].text

Runs that differ only in their seed are one setting. Runs that went to the end come first; a run that stopped early has
the metric that it had at its last rung, which is not comparable with one at the end. Does not import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.engine.run.rungs import rung_values
from mimbench.engine.run.task import Metric
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import metric_of, task_of
from mimbench.jobs.studies.study_registry import members
from mimbench.jobs.studies.sweep import Sweep, saved_names, saved_sweep
from mimbench.jobs.tables.significance import Measured

log = logging.getLogger(__name__)

SEED = "seed"


@dataclass(frozen=True)
class Setting:
    """The runs of a sweep with the same values, apart from their seeds."""

    values: tuple[str, ...]  # of the varied keys
    measured: Measured  # at the end or, if every run stopped early, at the last rung
    seeds: int  # runs that `measured` rests on
    epochs: int | None  # at which all its runs had stopped early; None if one went to the end
    stopped: int  # runs that stopped early
    records: tuple[Record, ...]

    @property
    def text(self) -> str:
        """Return the metric as people read it, with the deviation over seeds."""
        return self.measured.text()

    @property
    def where(self) -> str:
        """Return where its runs stopped early; "" if none did."""
        if self.epochs is not None:
            return f"stopped after {self.epochs} epoch{'s' * (self.epochs != 1)}"
        return f"{self.stopped} of {self.stopped + self.seeds} seeds stopped early" if self.stopped else ""


@dataclass(frozen=True)
class SweepResult:
    """The ranked settings of a sweep."""

    name: str
    recipe: str
    keys: tuple[str, ...]  # varied, without the seed
    metric: Metric
    settings: tuple[Setting, ...]  # the best first
    open_runs: int  # runs without a result that did not stop early
    runs: frozenset[Path]  # the directories of all its runs

    @property
    def is_better_lower(self) -> bool:
        """Return whether a lower metric is better."""
        return self.metric.quantity.better == "lower"

    @property
    def summary(self) -> str:
        """Return what was found, in a sentence or two."""
        best = self.settings[0]
        values = ", ".join(f"{key}={value}" for key, value in zip(self.keys, best.values, strict=True))
        seeds = f"{best.seeds} seed{'s' * (best.seeds != 1)}"
        ended = sum(one.epochs is None for one in self.settings)
        parts = [f"{ended} of {len(self.settings)} settings went to the end"]
        if ended < len(self.settings):
            parts.append("the others stopped early, when too many were better")
        if self.open_runs:
            parts.append(f"{self.open_runs} run{'s are' if self.open_runs > 1 else ' is'} not over")
        return f"Best: {values}, {self.metric.title} {best.text} ({seeds}). {'; '.join(parts)}."


def sweeps(root: Path, found: Sequence[Record]) -> list[SweepResult]:
    """Return the sweeps saved under `root` of which at least two settings among the records `found` have a metric."""
    by_name = {record.name: record for record in found}
    results = []
    for name in saved_names(root):
        try:
            sweep = saved_sweep(name, root)
            result = _result(sweep, members(root, name), by_name) if sweep is not None else None
        except (ValueError, OSError, KeyError) as error:
            log.warning("the sweep %s is left out of the report: %s", name, error)
            continue
        if result is not None:
            results.append(result)
    return results


def _result(sweep: Sweep, directories: Mapping[str, str], by_name: Mapping[str, Record]) -> SweepResult | None:
    own = {" ".join(values) or sweep.recipe: dict(text.split("=", 1) for text in values) for values in sweep.runs}
    runs = [(own[label], by_name[name]) for name, label in directories.items() if label in own and name in by_name]
    varied = dict.fromkeys(key for values, _ in runs for key in values)
    keys = tuple(key for key in varied if key != SEED and len({values.get(key) for values, _ in runs}) > 1)
    task = task_of(find(sweep.recipe).stage)
    metric = metric_of(str(sweep.rungs["metric"]) if sweep.rungs else _most_common(task.main_metric, runs))
    groups: dict[tuple[str, ...], list[Record]] = {}
    for values, record in runs:
        groups.setdefault(tuple(values.get(key, "") for key in keys), []).append(record)
    settings = [one for values, records in groups.items() if (one := _setting(values, records, metric)) is not None]
    if len(settings) < 2 or not keys:
        return None
    sign = 1.0 if metric.quantity.better == "lower" else -1.0
    settings.sort(key=lambda one: (one.epochs is not None, -(one.epochs or 0), sign * one.measured.mean, one.values))
    over = sum(one.stopped + (one.seeds if one.epochs is None else 0) for one in settings)
    paths = frozenset(record.run.path for _, record in runs)
    return SweepResult(sweep.name, sweep.recipe, keys, metric, tuple(settings), len(runs) - over, paths)


def _most_common(main: str, runs: Iterable[tuple[dict[str, str], Record]]) -> str:
    """Return the task's main metric if a run has it; else the first metric of a run."""
    measured = [record.metrics for _, record in runs if record.metrics]
    return next(
        (key for key in (main, *(key for one in measured for key in one)) if any(key in m for m in measured)), main
    )


def _setting(values: tuple[str, ...], records: Sequence[Record], metric: Metric) -> Setting | None:
    """Return the setting of some seeds; None if none of them has the metric."""
    ended = [record for record in records if record.state == "done" and metric.key in record.metrics]
    rungs = [(record, list(rung_values(record.run.path).items())) for record in records if record.state == "stopped"]
    stopped = [(record, reached[-1]) for record, reached in rungs if reached]
    epochs: int | None = None
    if ended:
        numbers, chosen = [record.metrics[metric.key] for record in ended], ended
    elif stopped:
        epochs = max(rung[0] for _, rung in stopped)
        last = [(record, rung[1]) for record, rung in stopped if rung[0] == epochs]
        numbers, chosen = [value for _, value in last], [record for record, _ in last]
    else:
        return None
    digits = metric.quantity.digits
    measured = Measured(tuple(numbers), tuple(record.name for record in chosen), digits, digits)
    return Setting(values, measured, len(chosen), epochs, len(stopped), tuple(chosen))
