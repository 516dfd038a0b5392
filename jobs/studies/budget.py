"""A limit on the hours of a study: `mimbench submit STUDY --gpu-hours N`, also `--cpu-hours N`.

    <root>/.mimbench/budgets/<study>.json     the limits, the runs that they hold, and runs being started on a machine

Before a run is started, the hours that the study has spent, those still to come of its queued and running runs, and the
forecast of the run itself (jobs/runs/forecast.py) must together lie within the limit; otherwise the budget holds the
run. GPU hours are those of runs on GPUs alone; the wall time of runs without a GPU are CPU hours. If nothing tells the
cost of a run, it starts only while no other run of unknown cost is queued or running, so that one run tells the cost of
the others. A running run is never stopped by a budget: forecasts that are too low may exceed it by what was running.

Decisions are made under the lock for starting runs, so two submitters share one budget. It stays until it is changed.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir, process_started
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.runs.forecast import Forecast, Forecasts, shown, used_hours
from mimbench.jobs.runs.lock import starting_runs
from mimbench.jobs.runs.states import States
from mimbench.jobs.runs.store import config_of
from mimbench.jobs.studies.study_registry import directory_name

Kind = Literal["GPU", "CPU"]
KINDS: tuple[Kind, Kind] = ("GPU", "CPU")
STARTING = 600.0  # seconds for which a run being started on another machine counts as running
ROUNDING = 1e-6  # hours by which sums of the same hours may differ
HELD = "held by the budget"


@dataclass(frozen=True)
class Budget:
    """The hours that a study may take, of each kind; the runs that were held by it at the last submission.

    Raises:
        ValueError: if a limit is negative or not a number.
    """

    gpu: float = math.inf
    cpu: float = math.inf
    held: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, hours in (("--gpu-hours", self.gpu), ("--cpu-hours", self.cpu)):
            if not hours >= 0:
                raise ValueError(f"{option} {hours} must be at least 0; {option} inf lifts the limit")

    def of(self, kind: Kind) -> float:
        """Return the limit of one kind."""
        return self.gpu if kind == "GPU" else self.cpu

    @property
    def is_limited(self) -> bool:
        """Return whether it limits anything."""
        return math.isfinite(self.gpu) or math.isfinite(self.cpu)

    @property
    def text(self) -> str:
        """As people read it: `10 GPU hours and 5 CPU hours`."""
        limits = ((kind, self.of(kind)) for kind in KINDS)
        return " and ".join(f"{hours:g} {kind} hours" for kind, hours in limits if math.isfinite(hours)) or "no limit"


UNLIMITED = Budget()


def recorded(root: Path, study: str) -> Budget:
    """Return the budget recorded for a study; unlimited if there is none."""
    content = _read(root, study)
    gpu, cpu = (math.inf if content.get(kind) is None else float(content[kind]) for kind in ("gpu", "cpu"))
    return Budget(gpu, cpu, tuple(content.get("held", ())))


def chosen(root: Path, study: str, gpu: float | None, cpu: float | None) -> Budget:
    """Return the recorded budget with the given limits in place of its own; None leaves a limit as it is.

    Raises:
        ValueError: if a limit is negative or not a number.
    """
    before = recorded(root, study)
    return replace(before, gpu=before.gpu if gpu is None else gpu, cpu=before.cpu if cpu is None else cpu)


def record(root: Path, study: str, budget: Budget) -> None:
    """Record the budget of a study, if it has or had one; call it under the lock for starting runs.

    Raises:
        OSError: if it cannot be written.
    """
    before = _read(root, study)
    if budget.is_limited or before:
        limits = {
            kind: hours if math.isfinite(hours) else None for kind, hours in (("gpu", budget.gpu), ("cpu", budget.cpu))
        }
        write_json(_file(root, study), {**before, "study": study, **limits, "held": list(budget.held)})


def held_runs(root: Path) -> dict[str, str]:
    """Return the runs under `root` that a budget held at the last submission of their study: run -> study."""
    found: dict[str, str] = {}
    for file in (root / ".mimbench" / "budgets").glob("*.json"):
        content = _content(file)
        found |= {str(name): str(content.get("study", file.stem)) for name in content.get("held", ())}
    return found


@dataclass(frozen=True)
class Entry:
    """A run of the study, as far as its hours are concerned."""

    run: RunDir
    kind: Kind
    recipe: str
    config: Any = None  # None: that of the directory
    needs: tuple[Path, ...] = ()  # runs of the study that must be done before


@dataclass
class Hours:
    """A sum of hours of each kind, and the number of runs of unknown cost beside it."""

    gpu: float = 0.0
    cpu: float = 0.0
    unknown: int = 0

    def of(self, kind: Kind) -> float:
        """Return the hours of one kind."""
        return self.gpu if kind == "GPU" else self.cpu

    def add(self, kind: Kind, hours: float | None) -> None:
        """Add the hours of a run; None if they are unknown."""
        if hours is None:
            self.unknown += 1
        elif kind == "GPU":
            self.gpu += hours
        else:
            self.cpu += hours


@dataclass
class Account:
    """What a study has spent, what is reserved, and what may start within its budget."""

    budget: Budget
    spent: Hours = field(default_factory=Hours)
    reserved: Hours = field(default_factory=Hours)  # by queued and running runs
    active: int = 0  # runs that are queued or running
    admitted: dict[Path, float | None] = field(default_factory=dict)  # runs that may start -> hours, None if unknown
    held: dict[Path, str] = field(default_factory=dict)  # runs that may not -> why
    beyond: Hours = field(default_factory=Hours)  # of the held runs

    def admit(self, entry: Entry, hours: float | None) -> None:
        """Let a run start if its hours lie within the budget; else hold it."""
        limit = self.budget.of(entry.kind)
        rest = limit - self.spent.of(entry.kind) - self.reserved.of(entry.kind)
        lost = any(need in self.held for need in entry.needs)
        waits = hours is None and self.reserved.unknown > 0 and math.isfinite(limit)
        if not lost and not waits and (math.isinf(limit) or (rest > 0 if hours is None else hours <= rest + ROUNDING)):
            self.admitted[entry.run.path] = hours
            self.reserved.add(entry.kind, hours)
            return
        if lost:
            why = "a run it needs is held"
        elif waits and rest > 0:
            why = "its cost is unknown until another run of unknown cost has ended"
        else:
            needed = "unknown cost" if hours is None else f"about {shown(hours)} {entry.kind} hours"
            why = f"{needed}, and {max(0.0, rest):,.2f} of {limit:g} are left"
        self.held[entry.run.path] = f"{HELD}: {why}"
        self.beyond.add(entry.kind, hours)

    def needed(self, kind: Kind) -> float:
        """Return the limit with which every held run of known cost could start, rounded up."""
        hours = self.spent.of(kind) + self.reserved.of(kind) + self.beyond.of(kind)
        step = 1.0 if hours >= 10 else 0.1 if hours >= 0.1 else 0.001
        return math.ceil(round(hours / step, 6)) * step

    def lines(self, command: str) -> list[str]:
        """Return lines for people: the account and, if runs are held, how to go on with `command`."""
        if not self.budget.is_limited:
            return []
        parts = [
            f"{self.spent.of(kind):,.2f} {kind} hours spent, {self.reserved.of(kind):,.2f} reserved"
            for kind in KINDS
            if math.isfinite(self.budget.of(kind))
        ]
        unknown = f" (and {self.reserved.unknown} of unknown cost)" if self.reserved.unknown else ""
        runs = self.active + len(self.admitted)
        first = f"budget of {self.budget.text}: {'; '.join(parts)} by {runs} queued and running runs{unknown}"
        if not self.held:
            return [first]
        costs = [f"{shown(self.beyond.of(kind))} {kind} hours" for kind in KINDS if self.beyond.of(kind)]
        if self.beyond.unknown:
            costs.append(f"{self.beyond.unknown} of unknown cost")
        count = f"{len(self.held)} run{'s are' if len(self.held) > 1 else ' is'} {HELD}: {', '.join(costs)}"
        return [first, count, f"to go on: {command}{self._larger()}"]

    def _larger(self) -> str:
        """Return the options of a budget with which the held runs could start."""
        options = []
        for kind in KINDS:
            limit = self.budget.of(kind)
            if math.isfinite(limit) and self.needed(kind) > limit:
                options.append(f" --{kind.lower()}-hours {self.needed(kind):g}")
        later = "" if options else " again, when a run has ended"
        return "".join(options) + later

    def as_json(self) -> dict[str, Any]:
        """Return the account as JSON; a limit of null is none."""
        sums = {"spent": self.spent, "reserved": self.reserved, "held_hours": self.beyond}
        return {
            "gpu_hours": self.budget.gpu if math.isfinite(self.budget.gpu) else None,
            "cpu_hours": self.budget.cpu if math.isfinite(self.budget.cpu) else None,
            **{name: {"gpu": one.gpu, "cpu": one.cpu, "unknown": one.unknown} for name, one in sums.items()},
            "held": {directory_name(RunDir(path)): why for path, why in self.held.items()},
        }


def account(
    root: Path,
    budget: Budget,
    entries: Iterable[Entry],
    wanted: Sequence[Path],
    rungs: Rungs | None = None,
    starting: Container[Path] = (),
) -> Account:
    """Return what the runs `entries` have spent and reserved, and which of `wanted` may start, in that order.

    Args:
        entries: all runs of the study; those that it no longer lists have spent hours, too.
        wanted: directories of the runs to start, each after the runs it needs.
        rungs: at which the study's runs stop early.
        starting: directories of runs that a process of this moment starts; they count as running.
    """
    states, forecasts, found = States(root), Forecasts(root), Account(budget)
    by_path = {entry.run.path: entry for entry in entries}
    for path, entry in by_path.items():
        used = used_hours(entry.run)
        found.spent.gpu, found.spent.cpu = found.spent.gpu + used.gpu, found.spent.cpu + used.cpu
        state = states.look(entry.run)[0] if entry.run.about.exists() else "new"
        if path in starting or state in ("queued", "running"):
            found.active += 1
            found.reserved.add(entry.kind, _hours(entry, state, forecasts, rungs))
    for path in wanted:
        if path not in starting:
            entry = by_path[path]
            state = states.look(entry.run)[0] if entry.run.about.exists() else "new"
            found.admit(entry, _hours(entry, state, forecasts, rungs))
    return found


def _hours(entry: Entry, state: str, forecasts: Forecasts, rungs: Rungs | None) -> float | None:
    """Return the hours to come of a run on its kind of device; None if unknown."""
    try:
        config = config_of(entry.run) if entry.config is None else entry.config
        if state == "new":
            forecast = forecasts.of(entry.recipe, config, rungs)
        else:
            forecast = forecasts.left(entry.run, state, entry.recipe, config)
    except (ValueError, KeyError, OSError):  # damaged
        return None
    return None if forecast is None or not _is_of(forecast, entry.kind) else forecast.hours


def _is_of(forecast: Forecast, kind: Kind) -> bool:
    """Return whether hours of the forecast's device tell those of a kind; A100 hours stand for any GPU's."""
    return forecast.hours == 0 or (forecast.unit == "CPU") == (kind == "CPU")


# --------------------------------------------------------------------------------------- runs started on this machine


class Gate:
    """Lets the local scheduler start a run only within the budget, which other processes may share."""

    def __init__(
        self, root: Path, study: str, budget: Budget, entries: Mapping[Path, Entry], rungs: Rungs | None
    ) -> None:
        self.root, self.study, self.budget, self.rungs = root, study, budget, rungs
        self.entries = {path.absolute(): replace(entry, run=RunDir(path.absolute())) for path, entry in entries.items()}
        self._mine: set[Path] = set()

    def held(self, runs: Sequence[RunDir], slots: int) -> dict[Path, str]:
        """Return which of `runs` may not start now, and why; reserve the hours of the first `slots` others.

        Raises:
            ValueError: if another process holds the lock for starting runs for two minutes.
            OSError: if the reservation cannot be written.
        """
        paths = [run.path.absolute() for run in runs]
        with starting_runs(self.root):
            starting = self._starting()
            found = account(self.root, self.budget, self.entries.values(), paths, self.rungs, starting)
            free = [path for path in paths if path not in found.held][:slots]
            if free:
                self._mine |= set(free)
                self._write({**starting, **dict.fromkeys(free, _me())})
        return found.held

    def reserves(self, run: RunDir) -> bool:
        """Return whether the hours of `run` are reserved by this process."""
        return run.path.absolute() in self._mine

    def release(self, run: RunDir) -> None:
        """End the reservation of a run that has ended."""
        path = run.path.absolute()
        if path in self._mine:
            self._mine.discard(path)
            with starting_runs(self.root):
                starting = self._starting()
                starting.pop(path, None)
                self._write(starting)

    def note_held(self, runs: Iterable[RunDir]) -> Account:
        """Record which runs were held in the end; return the account."""
        paths = [run.path.absolute() for run in runs]
        with starting_runs(self.root):
            names = tuple(directory_name(RunDir(path)) for path in paths)
            record(self.root, self.study, replace(self.budget, held=names))
            return account(self.root, self.budget, self.entries.values(), paths, self.rungs, self._starting())

    def _starting(self) -> dict[Path, dict[str, Any]]:
        root = self.root.absolute()
        kept: dict[str, dict[str, Any]] = _read(self.root, self.study).get("starting", {})
        return {root / name: by for name, by in kept.items() if _lives(by)}

    def _write(self, starting: Mapping[Path, dict[str, Any]]) -> None:
        names = {directory_name(RunDir(path)): by for path, by in starting.items()}
        write_json(_file(self.root, self.study), {**_read(self.root, self.study), "starting": names})


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "process_started": process_started(pid), "since": time.time()}


def _lives(by: Mapping[str, Any]) -> bool:
    """Return whether the process that starts a run still lives, or may live on another machine."""
    try:
        if by["host"] != socket.gethostname():
            return time.time() - float(by["since"]) < STARTING
        started = process_started(int(by["pid"]))
        return started is not None and abs(started - float(by["process_started"])) < 0.05
    except (KeyError, TypeError, ValueError):
        return False


def _file(root: Path, study: str) -> Path:
    return root / ".mimbench" / "budgets" / f"{quote(study, safe=' ,')}.json"


def _read(root: Path, study: str) -> dict[str, Any]:
    return _content(_file(root, study))


def _content(file: Path) -> dict[str, Any]:
    """Return the content of a budget's file; empty if it does not exist.

    Raises:
        ValueError: if it is damaged: without its limits, everything would be started.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); remove it and submit again with --gpu-hours N") from None
