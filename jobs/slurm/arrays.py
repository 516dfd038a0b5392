"""Group runs into arrays: one call of sbatch for all runs with the same shape and the same dependency.

Runs that each need one run of an array form another array with the same indices, so that SLURM starts each as soon as
its need is done (`aftercorr`). Runs that need the same runs share an array that waits for those (`afterok`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import submission
from mimbench.jobs.slurm.cluster import Shape
from mimbench.jobs.slurm.submission import Batch

Place = tuple[str, int]  # batch id, array index


class Unit(NamedTuple):
    """A run, its resources, and the runs that must be done before it."""

    run: RunDir
    shape: Shape
    needs: tuple[RunDir, ...] = ()
    name: str = "mimbench"


def plan(
    units: Sequence[Unit], root: Path, size: int, cluster: str = "", code: dict[str, Any] | None = None
) -> list[Batch]:
    """Return batches of at most `size` runs, each after the batches it needs.

    Raises:
        ValueError: if the needs form a circle.
    """
    places: dict[Path, Place] = {}
    batches: list[Batch] = []
    left = {unit.run.path: unit for unit in units}
    while left:
        ready = [unit for unit in left.values() if not any(need.path.absolute() in left for need in unit.needs)]
        if not ready:
            raise ValueError(
                f"{', '.join(str(path) for path in left)} need each other in a circle; remove one of these needs"
            )
        for group in _groups(ready, places, size):
            batch = _batch(group, root, cluster, code or {})
            batches.append(batch)
            for index, unit in group.items():
                places[unit.run.path] = (batch.id, index)
        for unit in ready:
            del left[unit.run.path]
    return batches


def _groups(ready: Sequence[Unit], places: dict[Path, Place], size: int) -> list[dict[int, Unit]]:
    """Return the units of one level by array index."""
    groups: dict[Hashable, dict[int, Unit]] = {}
    spread = _spread(ready, places)
    filled: Counter[Hashable] = Counter()
    for unit in ready:
        needs = _needs(unit)
        place = _place(needs[0], places) if len(needs) == 1 else None
        if place is not None and spread[unit.shape, place[0]] > 1:
            key: Hashable = ("corresponding", unit.shape, place[0])
            index = place[1]
            copy = 0
            while index in groups.get((key, copy), {}):
                copy += 1
            groups.setdefault((key, copy), {})[index] = unit
        else:
            key = (unit.shape, tuple(sorted(needs)))
            number = filled[key]
            filled[key] += 1
            groups.setdefault((key, number // size), {})[number % size] = unit
    return list(groups.values())


def _spread(ready: Sequence[Unit], places: dict[Path, Place]) -> Counter[tuple[Hashable, str]]:
    """Count the different runs of one batch that units of one shape need, one run for each unit."""
    different: dict[tuple[Hashable, str], set[int]] = defaultdict(set)
    for unit in ready:
        needs = _needs(unit)
        if len(needs) == 1 and (place := _place(needs[0], places)) is not None:
            different[unit.shape, place[0]].add(place[1])
    return Counter({key: len(indices) for key, indices in different.items()})


def _needs(unit: Unit) -> list[Path]:
    """Return the runs that the unit needs and that are not done."""
    return [need.path.absolute() for need in unit.needs if need.state() != "done"]


def _place(need: Path, places: dict[Path, Place]) -> Place | None:
    """Return the place of a run, planned here or submitted before."""
    if need in places:
        return places[need]
    found = submission.read(RunDir(need))
    return (found.batch, found.index) if found is not None else None


def _batch(group: dict[int, Unit], root: Path, cluster: str, code: dict[str, Any]) -> Batch:
    first = next(iter(group.values()))
    names = {unit.name for unit in group.values()}
    return Batch(
        root=root,
        cluster=cluster,
        name=first.name if len(names) == 1 else f"{first.name}+{len(group) - 1}",
        runs={index: str(unit.run.path.relative_to(root)) for index, unit in group.items()},
        shape=first.shape,
        needs={index: tuple(str(need.relative_to(root)) for need in _needs(unit)) for index, unit in group.items()},
        code=code,
    )
