"""GPU memory of a recipe, if its task can estimate it (`Task.memory`): `mimbench memory RECIPE [KEY=VALUE]...`.

Runs are also checked before they are submitted to a cluster whose profile has the size of its GPUs (`gpu_memory_gb`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.bar import working
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import task_of, tasks

if TYPE_CHECKING:
    from mimbench.jobs.slurm.cluster import Cluster
    from mimbench.jobs.studies.study import Run


def show(name: str, overrides: Sequence[str], gpus: int, free: float | None, as_json: bool) -> int:
    """Print the estimate; return 1 if it exceeds `free` GiB.

    Raises:
        ValueError: if the recipe's task has no estimate, or the batch cannot be divided among `gpus`.
    """
    recipe, config = resolve(name, overrides)
    memory = task_of(recipe.stage).memory
    if memory is None:
        estimated = " and ".join(f"{task.title} ({task.name}/...)" for task in tasks().values() if task.memory)
        raise ValueError(f"{name} has no memory estimate; choose a recipe of {estimated} (`mimbench recipes`)")
    if free is not None and not 0 < free < math.inf:
        raise ValueError(f"--free {free:g} must be positive: the GiB of memory of one GPU")
    from mimbench.jobs.cli.commands import print_json

    with working(f"estimating the memory of {name}"):
        needed = memory.estimate(config, gpus)
        what = memory.advice(config, int(free * 2**30), gpus) if free is not None else None
    if as_json:
        print_json({"recipe": name, **asdict(needed), "total": needed.total, "advice": what})
    else:
        _print(name, needed)
        if what is not None:
            print(what)
    return int(what is not None)


def must_fit(runs: Iterable[Run], cluster: Cluster) -> None:
    """Check that the runs fit the GPUs of `cluster`, if their memory and the size of the GPUs are known.

    Raises:
        ValueError: for the first that does not fit, with the estimate and settings that fit.
    """
    if cluster.gpu_memory_gb is None:
        return
    for run in runs:
        task = task_of(find(run.recipe).stage)
        if task.memory is None:
            continue
        config = resolve(run.recipe, run.overrides, Path("encoder") if run.checkpoint else None)[1]
        if not task.trains(config):  # evaluation only: nothing is trained
            continue
        what = task.memory.advice(config, int(cluster.gpu_memory_gb * 2**30), run.gpus * run.nodes)
        if what is not None:
            raise ValueError(f"{run.name}: the GPUs of cluster {cluster.name} are too small: {what}")


def _print(name: str, needed: Any) -> None:
    again = ", encoder activations recomputed" if needed.recompute else ""
    print(f"{name}: {needed.images} images at a time{again}")
    for part in ("parameters", "gradients", "optimizer", "activations"):
        print(f"{getattr(needed, part) / 2**30:>8.2f} GiB {part}")
    print(f"{needed.total / 2**30:>8.2f} GiB in total, including the CUDA context and a margin of 10 %")
