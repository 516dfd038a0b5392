"""Run the same evaluation with several seeds: one run for each, and the mean and standard deviation over them.

    mimbench evaluate encoder.safetensors --on linear,linear_fast --data imagenet --seeds 3
    mimbench run cls/linear_vitb checkpoint=encoder.safetensors --seeds 3

`seeds=3` as a setting means the same. Each seed is an ordinary run: finished seeds are not repeated, and
`mimbench table` shows all seeds in one cell. A recipe that has or uses no seed (k-NN of a given encoder) runs once.
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
    """Return the overrides of a run without `seeds=N`, and the number of seeds.

    Raises:
        ValueError: if N is not a whole number of at least 1.
    """
    said = [override.partition("=")[2] for override in overrides if override.startswith("seeds=")]
    if wrong := [text for text in said if not text.isdecimal() or not int(text)]:
        raise ValueError(
            f"seeds={wrong[0]} must be a whole number of at least 1: the number of runs, each with a different seed"
        )
    rest = [override for override in overrides if not override.startswith("seeds=")]
    return rest, int(said[-1]) if said else seeds


def seeded(study: Study, seeds: int) -> Study:
    """Return `study` with each run repeated for `seeds` seeds, counting up from its own seed.

    Raises:
        ValueError: if a run needs another run of the study, which would need several seeds too.
    """
    if seeds == 1:
        return study
    for run in study.runs:
        if run.need is not None:
            raise ValueError(f"{run.name} needs {run.need.name}; --seeds works only for runs that need no other run")
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
    """Return whether the seed of this config draws only random weights."""
    task = task_of_config(config)
    kinds = task.configs() if task else {}
    return task is not None and type(config) in [kinds[name] for name in task.seedless]


def study_of(recipe: str, overrides: Sequence[str], seeds: int) -> Study:
    """Return `mimbench run RECIPE [KEY=VALUE]... --seeds N` as a study.

    Raises:
        ValueError: if the recipe is unknown or has no seed, or an override is bad.
    """
    config = resolve(find(recipe).name, overrides)[1]
    if not hasattr(config, "seed"):
        raise ValueError(
            f"--seeds {seeds}: {recipe} has no seed and always gives the same result; run it without --seeds"
        )
    return seeded(Study(f"{recipe} in {seeds} seeds", [Run(recipe, tuple(overrides))]), seeds)


def spreads(tasks: Iterable[Task]) -> list[Spread]:
    """Return the spread of every metric of the finished runs, grouping runs that differ only in the seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for task in tasks:
        result = task.directory.read_result() if task.fate == "done" and task.directory is not None else None
        for metric, value in (result or {}).get("metrics", {}).items():
            found.setdefault((task.run.name.partition(", seed ")[0], metric), []).append(value)
    return [Spread(tuple(values), protocol, metric) for (protocol, metric), values in found.items()]


def to_json(found: Iterable[Spread]) -> list[dict[str, Any]]:
    """Return the spreads as JSON."""
    return [{**asdict(one), "values": list(one.values), "mean": one.mean, "deviation": one.deviation} for one in found]


def to_text(found: Iterable[Spread]) -> str:
    """Return a line for each, `linear_top1  83.57 ± 0.08 over 4 seeds`, below its protocol if there are several."""
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
