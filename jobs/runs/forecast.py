"""The hours that a run will take: `Forecasts(root).of(recipe, config)` before it has started, `left(...)` at any time.

From the speed of the run itself, if it has begun; else from finished runs of the same recipe on the same data, in
proportion to their length, or from runs that stopped early; else the cost that the recipe states or its task estimates,
in hours of an A100 (jobs/runs/cost.py). A run of a sweep with early stopping counts with the epochs that such a run
trains on average. The hours name their device and their source: hours on a CPU are never GPU hours. Does not import
torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mimbench.engine.data.datasets import HANDWRITTEN
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import FILE as RUNGS
from mimbench.engine.run.rungs import Rungs, rungs_of
from mimbench.jobs.runs.cost import cost_of
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import config_of
from mimbench.jobs.runs.tasks import known
from mimbench.jobs.runs.watch import Watch, last_step

Unit = Literal["GPU", "CPU", "A100"]
SAMPLES = 10  # finished runs of a recipe that are read


@dataclass(frozen=True)
class Used:
    """The hours of all starts of a run: wall time times GPUs, and wall time of starts without a GPU."""

    gpu: float = 0.0
    cpu: float = 0.0
    gpus: int = 0  # of the latest start


@dataclass(frozen=True)
class Forecast:
    """A number of hours, of what, and where it comes from."""

    hours: float
    unit: Unit
    source: str

    @property
    def text(self) -> str:
        """As people read it: `about 180 A100 hours (the recipe)`."""
        return f"about {shown(self.hours)} {self.unit} hours ({self.source})"

    def as_json(self) -> dict[str, Any]:
        """Return the forecast as JSON."""
        return asdict(self)


NOTHING = Forecast(0.0, "GPU", "")


def shown(hours: float) -> str:
    """Return hours with two digits; a forecast has no higher precision."""
    rounded = float(f"{hours:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def used_hours(run: RunDir) -> Used:
    """Return the hours of all starts of a run so far, including those moved to old-N/."""
    gpu = cpu = 0.0
    gpus: int | None = None
    for file in _starts(run):
        try:
            with open(file, encoding="utf-8") as handle:  # noqa: PTH123 (pathlib takes longer, and runs are many)
                attempt = json.load(handle)
            ended = attempt.get("ended") or os.stat(file).st_mtime  # noqa: PTH116
            hours = max(0.0, float(ended) - float(attempt["started"])) / 3600
            gpus = int(attempt["gpus"]) if "gpus" in attempt else _gpus_of_old(run)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        gpu, cpu = (gpu + hours * gpus, cpu) if gpus else (gpu, cpu + hours)
    return Used(gpu, cpu, _gpus_of_old(run) if gpus is None else gpus)


def _starts(run: RunDir) -> Iterator[str]:
    """Yield the files of all starts, the latest last."""
    place = os.fspath(run.path)
    inside = _names(place)
    folders = [f"{place}/{name}/attempts" for name in inside if name.startswith("old-")]
    for folder in [*folders, *([f"{place}/attempts"] if "attempts" in inside else [])]:
        names = (name for name in _names(folder) if name.endswith(".json"))
        yield from (f"{folder}/{name}" for name in sorted(names, key=lambda name: (len(name), name)))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _gpus_of_old(run: RunDir) -> int:
    """Return the GPUs of starts that did not record them: those requested from SLURM, else by the result's device."""
    if (run.path / "submission.json").exists():
        from mimbench.jobs.slurm import submission

        try:
            noted = submission.read(run)
        except ValueError:
            return 1
        if noted is not None:
            return int(noted.resources.get("gpus", 0)) * int(noted.resources.get("nodes", 1))
    try:
        device = str((run.read_result() or {}).get("device", ""))
    except ValueError:
        return 0
    return int(bool(device) and not device.endswith(" threads"))  # processors were recorded with their threads


class Forecasts:
    """Forecasts for runs under one root; finished runs are read once for each recipe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rates: dict[tuple[str, str, str], Forecast | None] = {}

    def of(self, recipe: str, config: Any, rungs: Rungs | None = None) -> Forecast | None:
        """Return the hours of a run of `config`, made from `recipe`; None if nothing tells them.

        With `rungs`, at which runs stop early, those that a run takes on average.
        """
        key = recipe, str(config.data), str(getattr(config, "subset", None))
        if key not in self._rates:
            self._rates[key] = self._rate(recipe, key)
        if (rate := self._rates[key]) is not None:
            found: Forecast | None = Forecast(rate.hours * _length(recipe, config), rate.unit, rate.source)
        else:
            found = _stated(recipe, config)
        share = _share_with_rungs(rungs, float(getattr(config, "epochs", 0)))
        return found if found is None or share == 1.0 else replace(found, hours=found.hours * share)

    def left(self, run: RunDir, state: str, recipe: str, config: Any, used: Used | None = None) -> Forecast | None:
        """Return the hours to come of a run in some state: none if it is done or stopped early; None if unknown."""
        if state in ("done", "stale", "stopped"):
            return NOTHING
        rungs = rungs_of(run.path)
        if state == "new":
            return self.of(recipe, config, rungs)
        used = used_hours(run) if used is None else used
        share = Watch(run).look().share if state in ("running", "interrupted", "lost") else 0.0
        if share and (line := last_step(run.metrics)) and "seconds" in line:
            now = _since(run) if state == "running" else 0.0  # metrics are as old as their last line
            whole = float(line["seconds"]) / share
            rest = _share_with_rungs(rungs, float(getattr(config, "epochs", 0)), share) * whole * (1 - share)
            return Forecast(
                max(0.0, rest - now) / 3600 * max(1, used.gpus), "GPU" if used.gpus else "CPU", "its speed so far"
            )
        found = self.of(recipe, config, rungs)
        before = 0.0 if found is None else used.cpu if found.unit == "CPU" else used.gpu
        return None if found is None else replace(found, hours=max(0.0, found.hours - before))

    def _rate(self, recipe: str, key: tuple[str, str, str]) -> Forecast | None:
        done = _rate([run for run in self._finished(recipe) if _same_data(run, key)])
        return done or _rate([run for run in self._stopped(recipe) if _same_data(run, key)], "stopped")

    @cached_property
    def _folders(self) -> dict[str, list[RunDir]]:
        found: dict[str, list[RunDir]] = {}
        for file in self._root.glob("*/*/result.json"):
            name = f"{file.parent.parent.name}/{file.parent.name.rpartition('-')[0]}"
            found.setdefault(name, []).append(RunDir(file.parent))
        return found

    def _finished(self, recipe: str) -> list[RunDir]:
        return self._folders.get(recipe, [])[:SAMPLES]

    def _stopped(self, recipe: str) -> list[RunDir]:
        """Return runs of `recipe` that stopped at a rung of their sweep."""
        runs = (RunDir(file.parent) for file in self._root.glob(f"{recipe}-*/{RUNGS}"))
        return list(islice((run for run in runs if _is_stopped(run)), SAMPLES))


def _is_stopped(run: RunDir) -> bool:
    try:
        return run.state() == "stopped"
    except ValueError:  # damaged
        return False


def _share_with_rungs(rungs: Rungs | None, epochs: float, done: float = 0.0) -> float:
    """Return which share of the rest of a training is still trained on average; `done`: the share that is behind it."""
    if rungs is None or not epochs or done >= 1:
        return 1.0
    return rungs.expected(epochs, done * epochs) / (epochs * (1 - done))


def _since(run: RunDir) -> float:
    try:
        return time.time() - run.metrics.stat().st_mtime
    except OSError:
        return 0.0


def _same_data(run: RunDir, key: tuple[str, str, str]) -> bool:
    try:
        config = config_of(run)
    except (ValueError, KeyError):  # damaged, or without the name of its config
        return False
    return (str(config.data), str(getattr(config, "subset", None))) == key[1:]


def _rate(runs: Iterable[RunDir], how: Literal["finished", "stopped"] = "finished") -> Forecast | None:
    """Return the mean hours for each unit of length; of runs on GPUs, if there are any."""
    rates: dict[Unit, list[float]] = {"GPU": [], "CPU": []}
    for run in runs:
        used, length = used_hours(run), _length(run.read_about()["recipe"], config_of(run))
        if how == "stopped":
            length *= Watch(run).look().share
        if length > 0 and used.gpu:
            rates["GPU"].append(used.gpu / length)
        elif length > 0 and used.cpu:
            rates["CPU"].append(used.cpu / length)
    for unit, found in rates.items():
        if found:
            count = f"a {how} run" if len(found) == 1 else f"{len(found)} {how} runs"
            return Forecast(sum(found) / len(found), unit, f"{count} of this recipe")
    return None


def _length(recipe: str, config: Any) -> float:
    """Return what the time of a run is proportional to: its epochs, or its steps times its batch."""
    task = known(recipe.partition("/")[0])
    counts = task.counts if task is not None else "epochs"
    length = float(getattr(config, counts, 1))
    return length * float(getattr(config, "batch", 1)) if counts == "steps" else length


def _stated(recipe: str, config: Any) -> Forecast | None:
    if config.data == HANDWRITTEN:
        return None  # estimates do not hold for its few images
    try:
        unchanged = _same_length(config, _usual(recipe))
        cost = cost_of(config, find(recipe).function if unchanged else None)
    except ValueError:
        return None
    return Forecast(cost.hours, "A100", cost.source) if cost else None


@cache
def _usual(recipe: str) -> Any:
    """Return the recipe's config; a plan asks for it once for each of a thousand runs."""
    return find(recipe).build()


def _same_length(config: Any, usual: Any) -> bool:
    return all(getattr(config, name, None) == getattr(usual, name, None) for name in ("epochs", "steps", "batch"))


def total(found: Iterable[Forecast | None]) -> str:
    """Return the sums as text: `about 1,200 A100 hours and 3 CPU hours; 2 runs of unknown cost are not included`."""
    sums: dict[str, float] = {}
    unknown = 0
    for one in found:
        if one is None:
            unknown += 1
        else:
            sums[one.unit] = sums.get(one.unit, 0.0) + one.hours
    parts = " and ".join(f"{shown(hours)} {unit} hours" for unit, hours in sums.items())
    rest = f"{unknown} run{'s' * (unknown != 1)} of unknown cost {'are' if unknown != 1 else 'is'} not included"
    return "; ".join(([f"about {parts}"] if parts else []) + ([rest] if unknown and parts else []))
