"""The state of runs: what their files say and, of those that were submitted to a cluster, what its scheduler adds.

    new queued running done failed interrupted lost blocked       (and `damaged`, of a directory that cannot be read)

The scheduler is asked once for all runs, and only if one was submitted that is not done.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir


class States:
    """The states of runs under one root, as they are at one time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, tuple[Any, Any]] = {}  # cluster's name -> its profile, its queue

    def of(self, run: RunDir) -> str:
        """The state of `run`.

        Raises:
            ValueError: if its files are damaged.
        """
        state = run.state()
        if state == "done" or not (run.path / "submission.json").exists():
            return state
        from mimbench.jobs.slurm import schedulers, submission

        noted = submission.read(run)
        if noted is None:
            return state
        profile, queue = self._ask(noted.cluster)
        return schedulers.status_of(run, queue, profile)

    def look(self, run: RunDir) -> tuple[str, str]:
        """The state of `run`, `damaged` among them, and why: of one that failed or is damaged."""
        try:
            state = self.of(run)
            if state == "done":
                run.read_result()
            return state, why(run) if state == "failed" else ""
        except (ValueError, OSError) as error:
            return "damaged", str(error)

    def _ask(self, name: str) -> tuple[Any, Any]:
        """That cluster's profile and queue; nothing where its profile is not on this machine, or SLURM is silent."""
        if name not in self._seen:
            from mimbench.jobs.slurm import cluster, schedulers

            try:
                profile = cluster.load(name)
                self._seen[name] = profile, schedulers.queue(profile, self.root)
            except (ValueError, OSError):
                self._seen[name] = None, schedulers.Queue({}, {}, 0.0, answered=False)
        return self._seen[name]


def hand_in_what_waits(root: Path) -> None:
    """Submit what was noted while a scheduler did not answer, if it does now; nothing where nothing waits."""
    folder = root / ".mimbench" / "jobs"
    if not any(folder.glob("*/unsent")):
        return
    from mimbench.jobs.slurm import cluster, schedulers, submission

    with suppress(ValueError, OSError):
        for name in {batch.cluster for batch in submission.unsent(root)}:
            schedulers.waiting(cluster.load(name), root)


def why(run: RunDir) -> str:
    """What the last start of a run said when it failed."""
    attempts = run.attempts()
    return str(attempts[-1].get("why", "")) if attempts else ""
