"""Plan a study: the place and state of each run, and the runs that submitting it would start.

    mimbench plan crossmae/table2

    new          no directory yet, or never started
    queued       submitted, not started          running      running, here or elsewhere
    done         has a result                    stale        done, but its encoder was made again since
    failed       ended by an error               interrupted, lost    stopped; resumes when submitted again
    stopped      early, at a rung of its sweep: others were better
    blocked      cannot start: a run it needs has failed or stopped early
    orphaned     was submitted under this name, but is no longer in the study

Each run that is not over has its hours to come and their source (jobs/runs/forecast.py).

Reads files and starts nothing; 1,000 runs take a second or two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.forecast import Forecast, Forecasts, total
from mimbench.jobs.runs.hashes import file_hash
from mimbench.jobs.runs.states import States
from mimbench.jobs.runs.store import Place
from mimbench.jobs.runs.tasks import role_of
from mimbench.jobs.studies.budget import HELD, UNLIMITED, Account, Budget, recorded
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.studies.study_registry import directory_name, members

STARTABLE = ("new", "interrupted", "lost")  # states that submitting a study starts
OVER = ("done", "stale", "stopped")  # without hours to come
LOST = {"failed": "has failed", "blocked": "cannot start", "stopped": "stopped early"}  # needs that will not be done
STATES = (
    "new", "queued", "running", "done", "stale", "failed", "interrupted", "lost", "stopped", "blocked", "damaged",
    "orphaned"
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One run of the plan."""

    name: str
    directory: RunDir
    state: str
    why: str = ""
    run: Run | None = None  # None for an orphaned run
    place: Place | None = None
    forecast: Forecast | None = None  # hours to come, if it is not over

    def as_json(self) -> dict[str, Any]:
        """Return the line as JSON."""
        recipe = self.place.about["recipe"] if self.place else None
        needs = self.place.about["needs"] if self.place else []
        return {
            "name": self.name,
            "state": self.state,
            "why": self.why,
            "recipe": recipe,
            "run": str(self.directory.path),
            "needs": needs,
            "hours": self.forecast.as_json() if self.forecast else None,
        }


@dataclass(frozen=True)
class Plan:
    """A study and the states of its runs under a root."""

    study: Study
    root: Path
    lines: Sequence[Line]
    budget: Budget = UNLIMITED
    account: Account | None = None  # at a submission within a budget

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return the number of lines in each state."""
        found = Counter(line.state for line in self.lines)
        return {state: found[state] for state in STATES if found[state]}

    def of(self, *states: str) -> list[Line]:
        """Return the lines in these states."""
        return [line for line in self.lines if line.state in states]

    @property
    def remembered_data(self) -> dict[str, float | None]:
        """Return the data sets that are not on this machine: when a run last looked at each; None: never."""
        found: dict[str, float | None] = {}
        for line in self.lines:
            if line.place is not None and line.place.data is not None and line.place.data.missing:
                found[str(line.place.config.data)] = line.place.data.seen
        return found

    @property
    def missing_data(self) -> list[str]:
        """Return the data sets of unstarted runs that are unknown on this machine."""
        from mimbench.engine.data.datasets import is_there

        names = {str(line.place.config.data): None for line in self.of(*STARTABLE) if line.place and line.place.config}
        return [name for name in names if not is_there(name)]


def plan(study: Study, root: Path) -> Plan:
    """Return the plan of `study` under `root`; only the cache of content hashes is written.

    Raises:
        ValueError: if a recipe, an override or a checkpoint is bad.
        FileNotFoundError: if a checkpoint file does not exist.
    """
    states, places, titles = States(root), study.places(root, strict=False), study.titles
    budget = recorded(root, study.name)
    held = set(budget.held)
    forecasts = Forecasts(root)
    lines: dict[Run, Line] = {}
    for run in study.ordered():
        line = _line(run, titles[run], places[run], states, [lines[need] for need in study.needs(run)])
        if line.state in STARTABLE and directory_name(line.directory) in held:
            line = replace(line, why="; ".join(filter(None, (line.why, HELD))))
        if line.state not in OVER:
            line = replace(line, forecast=_forecast(line, places[run], study, forecasts))
        lines[run] = line
    listed = {directory_name(found.run) for found in places.values()}
    return Plan(study, root, [*(lines[run] for run in study.runs), *_orphans(study, root, listed, states)], budget)


def _forecast(line: Line, found: Place, study: Study, forecasts: Forecasts) -> Forecast | None:
    """Return the hours to come of a run that is not over."""
    recipe = found.about["recipe"]
    if line.state in ("new", "blocked", "damaged"):
        return forecasts.of(recipe, found.config, study.rungs)
    try:
        return forecasts.left(found.run, line.state, recipe, found.config)
    except (ValueError, OSError):  # a damaged file of the run
        return None


def _line(run: Run, title: str, found: Place, states: States, needs: Sequence[Line]) -> Line:
    state, reason = "new", ""
    if found.run.about.exists():
        state, reason = states.look(found.run)
    if state == "done" and (changed := _stale(found)):
        state, reason = "stale", changed
    if state == "new" and (former := found.former_run) is not None and former.result.is_file():
        reason = f"{directory_name(former)} of an older version has the same settings, see `mimbench explain`"
    lost = next((need for need in needs if need.state in LOST), None)
    if lost is not None and state in (*STARTABLE, "queued") and not _has_its_encoder(run, found):
        state, reason = "blocked", f"needs {lost.name}, which {LOST[lost.state]}"
    return Line(title, found.run, state, reason, run, found)


def _has_its_encoder(run: Run, found: Place) -> bool:
    """Return whether the intermediate encoder a run starts from already exists; it needs no more of the pretraining."""
    return run.epoch is not None and Path(found.about["checkpoint"]["path"]).exists()


def _stale(found: Place) -> str:
    """Return how the encoder of a finished run, made by another run, has changed since; "" if it has not."""
    checkpoint = found.about["checkpoint"]
    if not checkpoint or not checkpoint["run"] or not Path(checkpoint["path"]).is_file():
        return ""
    used = ((found.run.read_result() or {}).get("checkpoint") or {}).get("hash")
    role = role_of(found.about["stage"])
    partial = getattr(found.config, "allow_partial", False)
    root = found.run.path.parents[1]
    try:
        now = file_hash(Path(checkpoint["path"]), root, allow_partial=partial, role=role)
    except (ValueError, OSError) as error:
        return f"it started from weights {str(used)[:10]}, but now {error}"
    return f"it started from weights {used[:10]}, which are now {now[:10]}" if used and used != now else ""


def _orphans(study: Study, root: Path, listed: set[str], states: States) -> list[Line]:
    gone = {name: label for name, label in members(root, study.name).items() if name not in listed}
    runs = [(label, RunDir(root / name)) for name, label in gone.items() if (root / name / "run.json").exists()]
    return [Line(label, run, "orphaned", f"it is {states.look(run)[0]}") for label, run in runs]


# --------------------------------------------------------------------------------------------------------- for people


def known_by(seen: float | None) -> str:
    """Return how a plan identifies runs on data that are not on this machine, last looked at at the time `seen`."""
    if seen is None:
        return "its files were never read under this runs root, so the plan cannot recognise runs that read them"
    return f"its files are taken as they were on {datetime.fromtimestamp(seen):%Y-%m-%d %H:%M}"


MARKS = {
    "new": "+", "queued": ".", "running": ">", "done": "=", "stale": "~", "failed": "!", "interrupted": "/",
    "lost": "?", "stopped": "|", "blocked": "x", "damaged": "!", "orphaned": "-",
}  # fmt: skip


def render(found: Plan) -> str:
    """Return the plan as text: a line for each run, then the counts."""
    width = max((len(line.name) for line in found.lines), default=0)
    rows = []
    for line in found.lines:
        where = directory_name(line.directory)
        notes = "; ".join(filter(None, (line.why, line.forecast.text if line.forecast else "")))
        rows.append(f"{MARKS[line.state]} {line.state:<11} {line.name:<{width}}  {where}  {notes}".rstrip())
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items()) or "no runs"
    waiting = [line.forecast for line in found.lines if line.state not in (*OVER, "orphaned")]
    hours = total(waiting)
    limit = f"budget: {found.budget.text}" if found.budget.is_limited else ""
    if held := sum(HELD in line.why for line in found.lines):
        limit += f"; {held} run{'s are' if held > 1 else ' is'} {HELD}: submit with more hours to go on"
    return "\n".join([*rows, *filter(None, (hours and f"to come: {hours}", limit)), f"{found.study.name}: {counts}"])
