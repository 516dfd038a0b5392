"""The state of a run on a cluster, from its files, then the queue, accounting and the heartbeat.

    status_of(run, queue(cluster, root), cluster)      # "queued", "running", ...
    remark(run, queue(cluster, root))                  # why it waits or hangs and what to do, "" if all is well

A job whose need failed waits for ever where the site does not remove it: its run is `blocked`. A job that SLURM still
runs although the processes of its run are gone (SLURM's own process of the step was killed) is `lost`: its shell
requeues it when it notices (jobs/slurm/hung_step.py), `mimbench retry` at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm import submission
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.commands import Queue
from mimbench.jobs.slurm.submission import Submission

Status = Literal["new", "queued", "running", "done", "failed", "interrupted", "lost", "blocked", "stopped"]

STEP_GONE = 300.0  # seconds that a job must have run, if its run is dead, before SLURM is asked whether it hangs
ENDING = (
    "COMPLETING",
    "RUNNING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
)  # SLURM still has a process of the job


def status_of(run: RunDir, seen: Queue | dict[str, str], cluster: Cluster | None = None) -> Status:
    """Return the state of a run from its files, then the queue, accounting (with `cluster`) and the heartbeat."""
    state = run.state()
    found = submission.read(run) if state not in ("done", "stopped") else None
    if found is None:
        return "blocked" if state == "new" and _needs_failed(run) else state
    live = "NOTED" if found.job is None else seen.get(found.job)
    if live is not None:
        return _live(run, live, found, seen)
    if not getattr(seen, "answered", True) or found.submitted >= getattr(seen, "asked", time.time()) - 1.0:
        waits = state in ("new", "interrupted", "lost") or (state == "failed" and _failed_before(run, found))
        return "queued" if waits else state  # the queue was listed too early to know the job
    return _left(run, found, cluster)


def remark(run: RunDir, seen: Queue | dict[str, str]) -> str:
    """Return why a run that has a job neither runs nor will start by itself, and what to do; "" if all is well."""
    found = submission.read(run)
    if found is None:
        return ""
    if found.job is None:
        return "waits here: `mimbench watch` or the next `mimbench submit` submits it"
    if reason := _reason(found, seen):
        return _in_words(found, reason)
    if seen.get(found.job) == "RUNNING" and run.state() == "lost" and _hangs(run, found, seen):
        gone = f"job {found.job} still runs, but the run's processes are gone"
        return f"{gone}; it is requeued within ten minutes, by `mimbench retry` now"
    return ""


def _in_words(found: Submission, reason: str) -> str:
    """Return what a reason of SLURM for which a job waits means, and what to do."""
    if reason == slurm.NEVER:
        return (
            f"job {found.job} waits for a job that failed; `mimbench retry` of both runs submits them again, "
            "`mimbench cancel` removes it"
        )
    if reason.startswith(slurm.HELD):
        return f"job {found.job} is held ({reason}); `mimbench retry` releases it"
    return f"SLURM: {reason}"


def _reason(found: Submission, seen: Queue | dict[str, str]) -> str:
    return str(getattr(seen, "reasons", {}).get(found.job, ""))


def _failed_before(run: RunDir, found: Submission) -> bool:
    """Return whether the run failed before its latest submission."""
    return float(run.attempts()[-1].get("ended", 0.0)) < found.submitted


def _live(run: RunDir, live: str, found: Submission, seen: Queue | dict[str, str]) -> Status:
    """Return the state of a run whose job is in the queue."""
    if live not in ENDING:
        return "blocked" if _reason(found, seen) == slurm.NEVER else "queued"
    attempts = run.attempts()
    ended = attempts and attempts[-1].get("job") == found.job and attempts[-1]["state"] == "failed"
    if live == "RUNNING" and run.state() == "lost" and _hangs(run, found, seen):
        return "lost"
    return "failed" if ended else "running"


def _hangs(run: RunDir, found: Submission, seen: Queue | dict[str, str]) -> bool:
    """Return whether the processes of a run whose job runs are gone, and are not those of an earlier start of the job.

    Between a restart and the first sign of life of the run (imports, copying data) lie minutes or hours, so SLURM is
    asked for the number of restarts. It is asked only of dead runs whose job has run for a while.
    """
    if getattr(seen, "ran", {}).get(found.job, 0) < STEP_GONE:
        return False
    last = run.attempts()[-1]
    return last.get("job") == found.job and last.get("restart") == slurm.restarts_of(str(found.job))


def _left(run: RunDir, found: Submission, cluster: Cluster | None) -> Status:
    """Return the state of an unfinished run whose job has left the queue."""
    state = run.state()
    if state == "running":
        return "lost" if run.attempts()[-1].get("job") == found.job else "running"
    if state == "failed" or (cluster is not None and cluster.has_sacct and _history(str(found.job)) == "FAILED"):
        return "failed"
    if _needs_failed(run):
        return "blocked"
    return "interrupted" if state == "interrupted" else "lost"


def _history(job: str) -> str | None:
    try:
        return slurm.history([job]).get(job)
    except (ValueError, OSError):
        return None


def _needs_failed(run: RunDir) -> bool:
    """Return whether a run it needs has failed or can itself never start."""
    return any(need.state() == "failed" or _needs_failed(need) for need in missing(run))


def missing(run: RunDir) -> list[RunDir]:
    """Return the needed runs that are not done, except pretrainings that have already written the needed encoder."""
    about, root = run.read_about(), run.path.absolute().parents[1]
    checkpoint = about.get("checkpoint") or {}
    identity, _, epoch = str(checkpoint.get("run")).partition("@")
    left = identity if epoch and Path(checkpoint["path"]).is_file() else None
    needs = [RunDir(root / path) for path in about.get("needs", ()) if left is None or not path.endswith(f"-{left}")]
    return [need for need in needs if need.about.is_file() and need.state() != "done"]
