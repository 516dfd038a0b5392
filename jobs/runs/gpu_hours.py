"""Hours used and hours to come: `mimbench cost [--study STUDY]`.

Used: the wall time of all starts, times the GPUs of each; the time of starts without a GPU is counted apart, as CPU
hours. To come: see jobs/runs/forecast.py; nothing for runs that are done or stopped early. A study that was not
submitted yet has only hours to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.jobs.runs.forecast import NOTHING, Forecast, Forecasts, Used, total, used_hours
from mimbench.jobs.runs.status import Row, rows
from mimbench.jobs.runs.store import config_of

if TYPE_CHECKING:
    from mimbench.jobs.studies.plan import Plan

OVER = ("done", "stopped")


@dataclass(frozen=True)
class Spent:
    """The hours of one run."""

    name: str
    state: str
    used: Used
    left: Forecast | None  # None if unknown

    def as_json(self) -> dict[str, Any]:
        """Return the hours as JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "gpus": self.used.gpus,
            "used": self.used.gpu,
            "cpu_used": self.used.cpu,
            "left": None if self.left is None else self.left.hours,
            "unit": "" if self.left is None else self.left.unit,
            "source": "" if self.left is None else self.left.source,
        }


def spent(root: Path, study: str | None = None) -> list[Spent]:
    """Return the hours of every run under `root`, or of one study.

    Raises:
        ValueError: if the study was never submitted here.
    """
    forecasts = Forecasts(root)
    return [_spent(row, used_hours(row.run), forecasts) for row in rows(root, study)]


def planned(plan: Plan) -> list[Spent]:
    """Return the hours of the runs of a plan, whether they have a directory or not."""
    here = {row.run.path.resolve(): row for row in rows(plan.root)}
    forecasts = Forecasts(plan.root)
    found = []
    for line in plan.lines:
        if (row := here.get(line.directory.path.resolve())) is not None:
            found.append(_spent(row, used_hours(row.run), forecasts))
        else:
            name = f"{line.directory.path.parent.name}/{line.directory.path.name}"
            found.append(Spent(name, line.state, Used(), line.forecast))
    return found


def _spent(row: Row, used: Used, forecasts: Forecasts) -> Spent:
    return Spent(row.name, row.state, used, _left(row, used, forecasts))


def _left(row: Row, used: Used, forecasts: Forecasts) -> Forecast | None:
    if row.state in OVER:
        return NOTHING
    try:
        return forecasts.left(row.run, row.state, row.recipe, config_of(row.run), used)
    except (ValueError, KeyError):  # damaged, or without the name of its config
        return None


def to_json(found: Sequence[Spent]) -> dict[str, Any]:
    """Return all runs and their sums; `left` is GPU hours, `cpu_left` CPU hours, both without runs of unknown cost."""
    known = [one.left for one in found if one.left is not None]
    return {
        "used": sum(one.used.gpu for one in found),
        "cpu_used": sum(one.used.cpu for one in found),
        "left": sum(left.hours for left in known if left.unit != "CPU"),
        "cpu_left": sum(left.hours for left in known if left.unit == "CPU"),
        "unknown": len(found) - len(known),
        "runs": [one.as_json() for one in found],
    }


def render(found: Sequence[Spent]) -> str:
    """Return the list as text, the most expensive run first."""
    width = max((len(one.name) for one in found), default=4)
    lines = [f"{'hours':<{width}}  {'state':<11} {'GPU used':>10} {'CPU used':>10} {'to come':>10}"]
    for one in sorted(found, key=lambda one: -(one.used.gpu + one.used.cpu + (one.left.hours if one.left else 0.0))):
        left = "?" if one.left is None else f"{one.left.hours:,.2f}"
        what = f"{one.left.unit} hours, by {one.left.source}" if one.left is not None and one.left.source else ""
        used = f"{one.used.gpu:>10,.2f} {one.used.cpu:>10,.2f}"
        lines.append(f"{one.name:<{width}}  {one.state:<11} {used} {left:>10}  {what}".rstrip())
    sums = to_json(found)
    cpu = f" and {sums['cpu_used']:,.2f} CPU hours" if sums["cpu_used"] else ""
    rest = total(one.left for one in found if one.state not in OVER) or ("unknown" if sums["unknown"] else "nothing")
    lines.append(f"{len(found)} runs: used {sums['used']:,.2f} GPU hours{cpu}; to come: {rest}")
    return "\n".join(lines)
