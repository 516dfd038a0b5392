"""SLURM's commands, asked sparingly: what is in the queue, what became of a job, put it back, take it out.

State lives in the runs' files; what SLURM says is advice. The queue is asked for at most once in `EVERY` seconds,
whatever the number of runs, shells and people that look, for the answer is kept under the runs root. Without an
accounting database `sacct` fails; only a profile with `has_sacct` has it asked.
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

EVERY = 10.0  # seconds between two questions after the queue
PATIENCE = 30.0  # seconds that a command of SLURM may take
SILENT = (  # what SLURM's commands say when the controller cannot be reached, as opposed to refusing
    "unable to contact slurm controller", "socket timed out", "connection refused", "communication connection failure",
    "slurm controller not responding", "transport endpoint", "connection timed out", "slurmctld in standby",
    "unable to establish controller", "could not establish a configuration source", "zero bytes were transmitted",
)  # fmt: skip
KEYS = {  # what SLURM's words are about, and which key of the profile says it
    "account": "account", "partition": "partition", "qos": "qos", "feature": "constraint", "time limit": "minutes",
    "generic resource": "gpu_request, gpu_type or gpus_per_node", "gres": "gpu_request or gpu_type",
    "memory": "memory_gb", "wckey": "wckey", "reservation": "sbatch", "unrecognized option": "sbatch",
    "invalid option": "sbatch", "node configuration": "cpus_per_task, memory_gb or gpus_per_node",
    "processors": "cpus_per_task", "cpu count": "cpus_per_task", "node count": "the number of nodes",
}  # fmt: skip


class SilentError(OSError):
    """SLURM does not answer: what was asked may be asked again later."""


class Queue(dict[str, str]):
    """Job id (`123` or `123_4`) to state, as squeue spells it; when it was asked, and whether it answered."""

    def __init__(self, jobs: dict[str, str], names: dict[str, str], asked: float, answered: bool) -> None:
        super().__init__(jobs)
        self.names, self.asked, self.answered = names, asked, answered


def ask(*command: str) -> str:
    """What a command of SLURM prints.

    Raises:
        SilentError: if the controller cannot be reached, or takes too long.
        ValueError: in SLURM's words, if it refuses; also if there is no SLURM.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"there is no SLURM here ({command[0]} is not found): run this on a login node of the cluster, "
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
    """SLURM's words as an error: that it is silent, or what it refused and which key of the profile that is."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in said.strip().splitlines()]
    words = "; ".join(dict.fromkeys(line for line in lines if line)) or "it gave no reason"
    low = words.lower()
    if any(phrase in low for phrase in SILENT):
        return SilentError(f"SLURM does not answer: {words}")
    keys = [key for phrase, key in KEYS.items() if phrase in low]
    if not keys or cluster is None:
        return ValueError(f"SLURM says: {words}")
    value = getattr(cluster, keys[0], None)
    shown = keys[0] if value is None else f"{keys[0]}={value}"
    return ValueError(f"SLURM says: {words}. Look at {shown} in the profile of cluster {cluster.name}")


def queue(cluster: Cluster, root: Path) -> Queue:
    """The queue as it was no more than `EVERY` seconds ago; not `answered` when SLURM is silent."""
    file = root / ".mimbench" / f"queue-{cluster.name}.json"
    if (kept := _kept(file)) is not None:
        return kept
    with suppress(ValueError), lock(file.with_suffix(".lock"), wait=5):
        if (kept := _kept(file)) is not None:  # another shell asked while this one waited
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
    asked = time.time()  # before the question: what is submitted after it may be missing from the answer
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
    """States and names by job id, asked now: this person's jobs, each run of an array a line."""
    lines = ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%j").splitlines()
    rows = [line.split("|", 2) for line in lines if line.count("|") >= 2]
    return {job: state for job, state, _ in rows}, {job: name for job, _, name in rows}


def state_of(job: str) -> str | None:
    """The state of one job, asked now; None if the queue has forgotten it."""
    try:
        lines = ask("squeue", "-h", "-r", "-j", job, "-o", "%i|%T").splitlines()
    except ValueError:  # an id that is too old is an invalid one
        return None
    return dict(line.split("|", 1) for line in lines).get(job)


def history(jobs: Sequence[str]) -> dict[str, str]:
    """What the accounting database says of each job that it knows: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, ..."""
    if not jobs:
        return {}
    lines = ask("sacct", "-X", "-n", "-P", "-j", ",".join(jobs), "-o", "JobID,State").splitlines()
    return {job: state.split()[0] for job, state in (line.split("|", 1) for line in lines) if state}


def requeue(job: str) -> None:
    """Put a job back into the queue.

    Raises:
        ValueError: in SLURM's words, if it may not be.
    """
    ask("scontrol", "requeue", job)


def release(jobs: Iterable[str]) -> None:
    """Let those of the jobs that wait for others wait no longer.

    Raises:
        ValueError: in SLURM's words, if that may not be.
        SilentError: if the controller cannot be reached.
    """
    states, _ = listing()
    if waiting := [job for job in jobs if states.get(job) == "PENDING"]:
        ask("scontrol", "update", f"JobId={','.join(waiting)}", "Dependency=")


def cancel(jobs: Iterable[str]) -> None:
    """Take jobs out of the queue, and end those that run. One that is over already is none of our business."""
    if listed := sorted(jobs):
        ask("scancel", "--quiet", *listed)


def configuration() -> dict[str, str]:
    """`scontrol show config` as a dictionary."""
    lines = ask("scontrol", "show", "config").splitlines()
    return {key.strip(): value.strip() for key, mark, value in (line.partition("=") for line in lines) if mark}


def max_array(cluster: Cluster) -> int:
    """How many runs an array may have on this site."""
    return cluster.max_array or int(configuration().get("MaxArraySize", "1001"))
