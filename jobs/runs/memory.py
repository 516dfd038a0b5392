"""What a recipe needs on each GPU, where its task can tell (`Task.memory`): `mimbench memory RECIPE [KEY=VALUE]...`.

Before runs are handed to a cluster whose profile says how large its GPUs are (`gpu_memory_gb`), they are checked too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import task_of, tasks

if TYPE_CHECKING:
    from mimbench.jobs.slurm.cluster import Cluster
    from mimbench.jobs.studies.study import Run


def show(name: str, overrides: Sequence[str], gpus: int, free: float | None, as_json: bool) -> int:
    """Print the estimate; 1 if it is more than `free` GiB.

    Raises:
        ValueError: for a recipe of a task that has no estimate, and for a batch that cannot be divided among `gpus`.
    """
    recipe, config = resolve(name, overrides)
    memory = task_of(recipe.stage).memory
    if memory is None:
        estimated = " and ".join(f"{task.title} ({task.name}/...)" for task in tasks().values() if task.memory)
        raise ValueError(f"{name}: memory is estimated for recipes of {estimated}; `mimbench recipes` lists them")
    if free is not None and not 0 < free < math.inf:
        raise ValueError(f"--free {free:g} must be what a GPU has, a positive number of GiB")
    from mimbench.jobs.cli.commands import print_json

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
    """Each of `runs` whose memory can be estimated fits a GPU of `cluster`, if the size of that is known.

    Raises:
        ValueError: for the first that does not: the estimate, and what would fit.
    """
    if cluster.gpu_memory_gb is None:
        return
    for run in runs:
        task = task_of(find(run.recipe).stage)
        if task.memory is None:
            continue
        config = resolve(run.recipe, run.overrides, Path("encoder") if run.checkpoint else None)[1]
        if not task.trains(config):  # what is given is evaluated as it is
            continue
        what = task.memory.advice(config, int(cluster.gpu_memory_gb * 2**30), run.gpus * run.nodes)
        if what is not None:
            raise ValueError(f"{run.name}: the GPUs of cluster {cluster.name} are too small: {what}")


def _print(name: str, needed: Any) -> None:
    again = ", activations of the encoder computed twice" if needed.recompute else ""
    print(f"{name}: {needed.images} images at a time{again}")
    for part in ("parameters", "gradients", "optimizer", "activations"):
        print(f"{getattr(needed, part) / 2**30:>8.2f} GiB {part}")
    print(f"{needed.total / 2**30:>8.2f} GiB in all, with the CUDA context and 10 % to spare")
