"""GPU hours that runs have used and will still need: `mimbench cost`.

Used: the time of all starts, until the end or the last sign of life, times the GPUs of the run (those of its cluster;
one on this machine). To come: for a running run, from its speed so far; for a run that has not begun, the mean of
finished runs of the same recipe, else the cost stated by its recipe or estimated by its task (jobs/runs/cost.py), in
hours of an A100. On a machine without a GPU, these are hours of the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.status import Row, rows
from mimbench.jobs.runs.watch import last_step


@dataclass(frozen=True)
class Spent:
    """GPU hours of one run, or of several."""

    name: str
    state: str
    gpus: int
    used: float
    left: float | None  # None if unknown
    source: str = ""  # where `left` comes from


def spent(root: Path, study: str | None = None) -> list[Spent]:
    """Return the GPU hours of every run under `root`, or of one study.

    Raises:
        ValueError: if the study was never submitted here.
    """
    found = rows(root, study)
    used = {row.name: used_hours(row.run) for row in found}
    means = _means(found, used)
    return [_spent(row, *used[row.name], means) for row in found]


def used_hours(run: RunDir) -> tuple[float, int]:
    """Return the GPU hours of all starts of a run so far, and its number of GPUs."""
    gpus, seconds = _gpus(run), 0.0
    for file in _starts(run):
        try:
            attempt = json.loads(file.read_text(encoding="utf-8"))
            seconds += max(0.0, float(attempt.get("ended") or file.stat().st_mtime) - float(attempt["started"]))
        except (OSError, ValueError, KeyError):
            continue
    return seconds * gpus / 3600, gpus


def _starts(run: RunDir) -> Iterator[Path]:
    """Yield the files of all starts, including those moved to old-N/."""
    folder = run.path / "attempts"
    if folder.is_dir():
        yield from folder.glob("*.json")
        yield from run.path.glob("old-*/attempts/*.json")


def _gpus(run: RunDir) -> int:
    if (run.path / "submission.json").exists():
        from mimbench.jobs.slurm import submission

        try:
            noted = submission.read(run)
        except ValueError:
            return 1
        if noted is not None:
            return max(1, int(noted.resources.get("gpus", 0)) * int(noted.resources.get("nodes", 1)))
    return 1


def _means(found: Sequence[Row], used: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Return, by recipe, the mean hours of its finished runs."""
    hours: dict[str, list[float]] = {}
    for row in found:
        if row.state == "done":
            hours.setdefault(row.recipe, []).append(used[row.name][0])
    return {recipe: sum(each) / len(each) for recipe, each in hours.items()}


def _spent(row: Row, used: float, gpus: int, means: dict[str, float]) -> Spent:
    left, source = _left(row, used, gpus, means)
    return Spent(row.name, row.state, gpus, used, left, source)


def _left(row: Row, used: float, gpus: int, means: dict[str, float]) -> tuple[float | None, str]:
    if row.state == "done":
        return 0.0, ""
    if row.share and (line := last_step(row.run.metrics)) and "seconds" in line:
        now = _since(row) if row.state == "running" else 0.0  # metrics are as old as their last line
        hours = float(line["seconds"]) * (1 / row.share - 1) * gpus / 3600
        return max(0.0, hours - now * gpus / 3600), "its speed so far"
    if row.recipe in means:
        return max(0.0, means[row.recipe] - used), "finished runs of this recipe"
    estimate = _estimate(row.run)
    return (max(0.0, estimate - used), "an estimate in A100 hours") if estimate is not None else (None, "")


def _since(row: Row) -> float:
    try:
        return time.time() - row.run.metrics.stat().st_mtime
    except OSError:
        return 0.0


def _estimate(run: RunDir) -> float | None:
    from mimbench.jobs.runs.cost import cost_of
    from mimbench.jobs.runs.recipes import find
    from mimbench.jobs.runs.store import config_of

    try:
        config = config_of(run)
        if config.data == "handwritten":
            return None  # estimates do not hold for its few images
        cost = cost_of(config, None if _changed(run, config) else find(run.read_about()["recipe"]).function)
    except ValueError:
        return None
    return cost.hours if cost else None


def _changed(run: RunDir, config: Any) -> bool:
    """Return whether the run's length differs from its recipe's, whose stated hours then do not apply."""
    from mimbench.jobs.runs.recipes import find

    recipe = find(run.read_about()["recipe"]).build()
    return any(getattr(config, name, None) != getattr(recipe, name, None) for name in ("epochs", "steps", "batch"))


def total(found: Sequence[Spent]) -> dict[str, Any]:
    """Return the sum and the number of runs of unknown cost, which it leaves out."""
    known = [one.left for one in found if one.left is not None]
    return {
        "used": sum(one.used for one in found),
        "left": sum(known),
        "unknown": len(found) - len(known),
        "runs": [asdict(one) for one in found],
    }


def render(found: Sequence[Spent]) -> str:
    """Return the list as text, the most expensive run first."""
    width = max((len(one.name) for one in found), default=0)
    lines = [f"{'GPU hours':<{width}}  {'state':<11} {'used':>10} {'to come':>10}"]
    for one in sorted(found, key=lambda one: -(one.used + (one.left or 0.0))):
        left = "?" if one.left is None else f"{one.left:,.2f}"
        lines.append(f"{one.name:<{width}}  {one.state:<11} {one.used:>10,.2f} {left:>10}  {one.source}".rstrip())
    whole = total(found)
    rest = f"; {whole['unknown']} runs of unknown cost are not included" if whole["unknown"] else ""
    lines.append(f"{len(found)} runs: {whole['used']:,.2f} GPU hours used, {whole['left']:,.2f} to come{rest}")
    return "\n".join(lines)
