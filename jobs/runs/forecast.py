"""The hours that a run will take, before it has started: `Forecasts(root).of(recipe, config)`.

From finished runs of the same recipe on the same data, in proportion to their length; else the cost that the recipe
states or its task estimates, in hours of an A100 (jobs/runs/cost.py). The hours name their device and their source:
hours on a CPU are never GPU hours. Does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from mimbench.engine.data.datasets import HANDWRITTEN
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.cost import cost_of
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import config_of
from mimbench.jobs.runs.tasks import known

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


def shown(hours: float) -> str:
    """Return hours with two digits; a forecast has no higher precision."""
    rounded = float(f"{hours:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def used_hours(run: RunDir) -> Used:
    """Return the hours of all starts of a run so far, including those moved to old-N/."""
    gpu = cpu = 0.0
    gpus = before = _gpus_of_old(run)
    for file in _starts(run):
        try:
            attempt = json.loads(file.read_text(encoding="utf-8"))
            hours = max(0.0, float(attempt.get("ended") or file.stat().st_mtime) - float(attempt["started"])) / 3600
            gpus = int(attempt.get("gpus", before))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        gpu, cpu = (gpu + hours * gpus, cpu) if gpus else (gpu, cpu + hours)
    return Used(gpu, cpu, gpus)


def _starts(run: RunDir) -> Iterator[Path]:
    """Yield the files of all starts, the latest last."""
    folder = run.path / "attempts"
    yield from run.path.glob("old-*/attempts/*.json")
    if folder.is_dir():
        yield from sorted(folder.glob("*.json"), key=lambda file: (len(file.stem), file.stem))


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

    def of(self, recipe: str, config: Any) -> Forecast | None:
        """Return the hours of a run of `config`, made from `recipe`; None if nothing tells them."""
        key = recipe, str(config.data), str(getattr(config, "subset", None))
        if key not in self._rates:
            self._rates[key] = _rate([run for run in self._finished(recipe) if _same_data(run, key)])
        if (rate := self._rates[key]) is not None:
            return Forecast(rate.hours * _length(recipe, config), rate.unit, rate.source)
        return _stated(recipe, config)

    @cached_property
    def _folders(self) -> dict[str, list[RunDir]]:
        found: dict[str, list[RunDir]] = {}
        for file in self._root.glob("*/*/result.json"):
            name = f"{file.parent.parent.name}/{file.parent.name.rpartition('-')[0]}"
            found.setdefault(name, []).append(RunDir(file.parent))
        return found

    def _finished(self, recipe: str) -> list[RunDir]:
        return self._folders.get(recipe, [])[:SAMPLES]


def _same_data(run: RunDir, key: tuple[str, str, str]) -> bool:
    try:
        config = config_of(run)
    except (ValueError, KeyError):  # damaged, or without the name of its config
        return False
    return (str(config.data), str(getattr(config, "subset", None))) == key[1:]


def _rate(runs: Iterable[RunDir]) -> Forecast | None:
    """Return the mean hours for each unit of length; of runs on GPUs, if there are any."""
    rates: dict[Unit, list[float]] = {"GPU": [], "CPU": []}
    for run in runs:
        used, length = used_hours(run), _length(run.read_about()["recipe"], config_of(run))
        if length > 0 and used.gpu:
            rates["GPU"].append(used.gpu / length)
        elif length > 0 and used.cpu:
            rates["CPU"].append(used.cpu / length)
    for unit, found in rates.items():
        if found:
            count = "a finished run" if len(found) == 1 else f"{len(found)} finished runs"
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
