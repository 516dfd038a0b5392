"""SLURM's commands, called rarely: list the queue, look up, requeue, release and cancel jobs.

The runs' files hold the state; SLURM's answers only add to it. The queue is listed at most once every `EVERY` seconds,
for any number of runs, shells and people, because the answer is cached under the runs root. Without an accounting
database `sacct` fails, so it is called only if the profile has `has_sacct`.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mimbench.jobs.runs.lock import lock
from mimbench.jobs.slurm.cluster import Cluster

EVERY = 10.0  # seconds between two listings of the queue
PATIENCE = 30.0  # timeout in seconds of a SLURM command
SILENT = (  # messages of SLURM's commands when the controller cannot be reached (not a refusal)
    "unable to contact slurm controller", "socket timed out", "connection refused", "communication connection failure",
    "slurm controller not responding", "transport endpoint", "connection timed out", "slurmctld in standby",
    "unable to establish controller", "could not establish a configuration source", "zero bytes were transmitted",
)  # fmt: skip
UNREACHED = ("connect failure", "connection refused", "could not establish a configuration source")  # of those
KEYS = {  # words in SLURM's refusals -> the key of the profile to change
    "account": "account", "partition": "partition", "qos": "qos", "feature": "constraint", "time limit": "minutes",
    "generic resource": "gpu_request, gpu_type or gpus_per_node", "gres": "gpu_request or gpu_type",
    "memory": "memory_gb", "wckey": "wckey", "reservation": "sbatch", "unrecognized option": "sbatch",
    "invalid option": "sbatch", "node configuration": "cpus_per_task, memory_gb or gpus_per_node",
    "processors": "cpus_per_task", "cpu count": "cpus_per_task", "node count": "the number of nodes",
}  # fmt: skip


class SilentError(OSError):
    """SLURM does not answer; the command can be repeated later.

    Attributes:
        reached: whether the controller may have received the command nevertheless.
    """

    reached = True


class UnreachableError(SilentError):
    """SLURM's controller cannot be reached: it has not received the command."""

    reached = False


class Queue(dict[str, str]):
    """State (as squeue spells it) by job id (`123` or `123_4`), the time of the listing, and whether SLURM answered."""

    def __init__(self, jobs: dict[str, str], names: dict[str, str], asked: float, answered: bool) -> None:
        super().__init__(jobs)
        self.names, self.asked, self.answered = names, asked, answered


def ask(*command: str) -> str:
    """Return the output of a SLURM command.

    Raises:
        SilentError: if the controller cannot be reached or does not answer in time.
        ValueError: with SLURM's message, if it refuses; also if SLURM is not installed.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"SLURM is not installed here ({command[0]} is not found); run this on a login node of the cluster, "
            "or use --cluster local"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise SilentError(f"SLURM does not answer: {command[0]} took more than {PATIENCE:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    raise refusal(done.stderr or done.stdout)


def refusal(said: str, cluster: Cluster | None = None) -> OSError | ValueError:
    """Return SLURM's message as an error: no answer, or a refusal with the key of the profile to change."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in said.strip().splitlines()]
    words = "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"
    low = words.lower()
    if any(phrase in low for phrase in SILENT):
        unreached = any(phrase in low for phrase in UNREACHED)
        return (UnreachableError if unreached else SilentError)(f"SLURM does not answer: {words}")
    keys = [key for phrase, key in KEYS.items() if phrase in low]
    if not keys or cluster is None:
        return ValueError(f"SLURM says: {words}")
    value = getattr(cluster, keys[0], None)
    shown = keys[0] if value is None else f"{keys[0]}={value}"
    return ValueError(f"SLURM says: {words}. Check {shown} in the profile of cluster {cluster.name}")


def queue(cluster: Cluster, root: Path) -> Queue:
    """Return the queue, at most `EVERY` seconds old; `answered` is false if SLURM does not answer."""
    file = root / ".mimbench" / f"queue-{cluster.name}.json"
    if (kept := _kept(file)) is not None:
        return kept
    with suppress(ValueError), lock(file.with_suffix(".lock"), wait=5):
        if (kept := _kept(file)) is not None:  # another shell listed it while this one waited
            return kept
        return _fresh(file)
    return _kept(file, anyhow=True) or Queue({}, {}, 0.0, answered=False)


def _kept(file: Path, anyhow: bool = False) -> Queue | None:
    try:
        found = Queue(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if anyhow or 0 <= time.time() - found.asked < EVERY else None


def _fresh(file: Path) -> Queue:
    asked = time.time()  # before the command: jobs submitted after it may be missing from the answer
    try:
        found = Queue(*listing(), asked, answered=True)
    except (OSError, ValueError):
        found = Queue({}, {}, asked, answered=False)
    value = {"jobs": dict(found), "names": found.names, "asked": asked, "answered": found.answered}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(file)
    return found


def listing() -> tuple[dict[str, str], dict[str, str]]:
    """Return the current states and names of this user's jobs by job id; each run of an array is separate."""
    lines = ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%j").splitlines()
    rows = [line.split("|", 2) for line in lines if line.count("|") >= 2]
    return {job: state for job, state, _ in rows}, {job: name for job, _, name in rows}


def state_of(job: str) -> str | None:
    """Return the current state of one job; None if it is no longer in the queue."""
    try:
        lines = ask("squeue", "-h", "-r", "-j", job, "-o", "%i|%T").splitlines()
    except ValueError:  # SLURM calls an old id invalid
        return None
    return dict(line.split("|", 1) for line in lines).get(job)


def history(jobs: Sequence[str]) -> dict[str, str]:
    """Return the state of each job in the accounting database: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, ..."""
    if not jobs:
        return {}
    lines = ask("sacct", "-X", "-n", "-P", "-j", ",".join(jobs), "-o", "JobID,State").splitlines()
    return {job: state.split()[0] for job, state in (line.split("|", 1) for line in lines) if state}


def requeue(job: str) -> None:
    """Requeue a job.

    Raises:
        ValueError: with SLURM's message, if it refuses.
    """
    ask("scontrol", "requeue", job)


def release(jobs: Iterable[str]) -> None:
    """Remove the dependencies of waiting jobs, so that they can start.

    Raises:
        ValueError: with SLURM's message, if it refuses.
        SilentError: if the controller cannot be reached.
    """
    states, _ = listing()
    if waiting := [job for job in jobs if states.get(job) == "PENDING"]:
        ask("scontrol", "update", f"JobId={','.join(waiting)}", "Dependency=")


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs, queued or running. Jobs that have already ended are ignored."""
    if listed := sorted(jobs):
        ask("scancel", "--quiet", *listed)


def configuration() -> dict[str, str]:
    """Return `scontrol show config` as a dictionary."""
    lines = ask("scontrol", "show", "config").splitlines()
    return {key.strip(): value.strip() for key, mark, value in (line.partition("=") for line in lines) if mark}


def max_array(cluster: Cluster) -> int:
    """Return the largest number of runs in an array on this site."""
    return cluster.max_array or int(configuration().get("MaxArraySize", "1001"))
