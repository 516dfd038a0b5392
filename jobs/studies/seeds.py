"""The same evaluation with several seeds: a run each, and the mean and standard deviation over them.

    mimbench evaluate encoder.safetensors --on linear,linear_fast --data imagenet --seeds 3
    mimbench run cls/linear_vitb checkpoint=encoder.safetensors --seeds 3

`seeds=3` among the settings means the same. A run is of one seed, so these are ordinary runs: seeds that are done
already are not repeated, and `mimbench table` shows them in one cell. What has no seed, or would not use it (k-NN of a
given encoder), runs once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import task_of_config
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.tables.significance import Values

if TYPE_CHECKING:
    from mimbench.jobs.local.scheduler import Task


@dataclass(frozen=True)
class Spread(Values):
    """One metric over the seeds of a run."""

    protocol: str
    metric: str


def asked_for(overrides: Sequence[str], seeds: int = 1) -> tuple[list[str], int]:
    """The overrides of a run, and how many seeds are wanted: `seeds=N` among them is no setting of one run.

    Raises:
        ValueError: if N is no number of seeds.
    """
    said = [override.partition("=")[2] for override in overrides if override.startswith("seeds=")]
    if wrong := [text for text in said if not text.isdecimal() or not int(text)]:
        raise ValueError(f"seeds={wrong[0]} must be a whole number of at least 1: so many runs, each with another seed")
    rest = [override for override in overrides if not override.startswith("seeds=")]
    return rest, int(said[-1]) if said else seeds


def seeded(study: Study, seeds: int) -> Study:
    """`study` with each of its runs in `seeds` seeds, counted up from the run's own.

    Raises:
        ValueError: if a run needs another one of the study, which would need its seeds as well.
    """
    if seeds == 1:
        return study
    for run in study.runs:
        if run.need is not None:
            raise ValueError(f"--seeds is for runs that need no other run; {run.name} needs {run.need.name}")
    return replace(study, runs=[one for run in study.runs for one in _seeds_of(run, seeds)])


def _seeds_of(run: Run, seeds: int) -> list[Run]:
    config = resolve(run.recipe, run.overrides)[1]
    given = run.checkpoint is not None or getattr(config, "checkpoint", None) is not None
    first = getattr(config, "seed", None)
    if first is None or (given and _seedless(config)):
        return [run]
    return [
        replace(run, overrides=(*run.overrides, f"seed={seed}"), label=f"{run.name}, seed {seed}")
        for seed in range(first, first + seeds)
    ]


def _seedless(config: Any) -> bool:
    """Whether its seed draws the random weights alone."""
    task = task_of_config(config)
    kinds = task.configs() if task else {}
    return task is not None and type(config) in [kinds[name] for name in task.seedless]


def study_of(recipe: str, overrides: Sequence[str], seeds: int) -> Study:
    """`mimbench run RECIPE [KEY=VALUE]... --seeds N` as a study.

    Raises:
        ValueError: for an unknown recipe, a bad override, or a recipe that has no seed.
    """
    config = resolve(find(recipe).name, overrides)[1]
    if not hasattr(config, "seed"):
        raise ValueError(f"--seeds {seeds}: {recipe} has no seed, it gives the same result each time")
    return seeded(Study(f"{recipe} in {seeds} seeds", [Run(recipe, tuple(overrides))]), seeds)


def spreads(tasks: Iterable[Task]) -> list[Spread]:
    """Every metric of the finished runs, those that differ in the seed alone together."""
    found: dict[tuple[str, str], list[float]] = {}
    for task in tasks:
        result = task.directory.read_result() if task.fate == "done" and task.directory is not None else None
        for metric, value in (result or {}).get("metrics", {}).items():
            found.setdefault((task.run.name.partition(", seed ")[0], metric), []).append(value)
    return [Spread(tuple(values), protocol, metric) for (protocol, metric), values in found.items()]


def to_json(found: Iterable[Spread]) -> list[dict[str, Any]]:
    """For programs."""
    return [{**asdict(one), "values": list(one.values), "mean": one.mean, "deviation": one.deviation} for one in found]


def to_text(found: Iterable[Spread]) -> str:
    """A line each: `linear_top1  83.57 ± 0.08 over 4 seeds`; below its protocol, where there are several."""
    groups = {protocol: list(mine) for protocol, mine in itertools.groupby(found, lambda one: one.protocol)}
    lines = []
    for protocol, mine in groups.items():
        lines += [f"\n{protocol}"] if len(groups) > 1 else []
        width = max(len(one.metric) for one in mine)
        lines += [_line(one, width) for one in mine]
    return "\n".join(lines).lstrip("\n")


def _line(one: Spread, width: int) -> str:
    if one.deviation is None:
        return f"{one.metric:<{width}}  {one.mean:.6g}"
    return f"{one.metric:<{width}}  {one.mean:.6g} ± {one.deviation:.2g} over {len(one.values)} seeds"
