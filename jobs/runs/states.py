"""The state of runs, from their files and, for runs submitted to a cluster, from its scheduler.

    new queued running done failed interrupted lost stopped blocked   (and `damaged`: a directory that cannot be read)

The scheduler is asked once for all runs, and only if a submitted run is not done.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir


class States:
    """The states of runs under one root at one moment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, tuple[Any, Any]] = {}  # cluster's name -> its profile, its queue

    def of(self, run: RunDir) -> str:
        """Return the state of `run`.

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

    def remark(self, run: RunDir) -> str:
        """Return why a submitted run waits or hangs, and what to do; "" if nothing needs to be done."""
        from mimbench.jobs.slurm import schedulers, submission

        noted = submission.read(run)
        return "" if noted is None else schedulers.remark(run, self._ask(noted.cluster)[1])

    def has_job(self, run: RunDir) -> bool:
        """Return whether the run has a job in a queue, or waits on disk to be submitted."""
        from mimbench.jobs.slurm import submission

        noted = submission.read(run)
        return noted is not None and (noted.job is None or noted.job in self._ask(noted.cluster)[1])

    def is_held(self, run: RunDir) -> bool:
        """Return whether the run's job waits in the queue until somebody releases it."""
        from mimbench.jobs.slurm import commands, submission

        noted = submission.read(run)
        reason = "" if noted is None else self._ask(noted.cluster)[1].reasons.get(noted.job, "")
        return bool(reason.startswith(commands.HELD))

    def look(self, run: RunDir) -> tuple[str, str]:
        """Return the state of `run`, which may be `damaged`, and the reason if it failed or is damaged."""
        try:
            state = self.of(run)
            if state == "done":
                run.read_result()
            return state, why(run) if state in ("failed", "stopped") else ""
        except (ValueError, OSError) as error:
            return "damaged", str(error)

    def _ask(self, name: str) -> tuple[Any, Any]:
        """Return that cluster's profile and queue; None for both without its profile here or an answer of SLURM."""
        if name not in self._seen:
            from mimbench.jobs.slurm import cluster, schedulers

            try:
                profile = cluster.load(name)
                self._seen[name] = profile, schedulers.queue(profile, self.root)
            except (ValueError, OSError):
                self._seen[name] = None, schedulers.Queue({}, {}, 0.0, answered=False)
        return self._seen[name]


def hand_in_what_waits(root: Path) -> None:
    """Submit the runs that were recorded while a scheduler did not answer, if it answers now."""
    folder = root / ".mimbench" / "jobs"
    if not any(folder.glob("*/unsent")):
        return
    from mimbench.jobs.slurm import cluster, schedulers, submission

    with suppress(ValueError, OSError):
        for name in {batch.cluster for batch in submission.unsent(root)}:
            schedulers.waiting(cluster.load(name), root)


def why(run: RunDir) -> str:
    """Return the failure message of a run's last start."""
    attempts = run.attempts()
    return str(attempts[-1].get("why", "")) if attempts else ""
