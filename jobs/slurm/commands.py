"""SLURM's commands, called rarely: list the queue, look up, requeue, release and cancel jobs.

The runs' files hold the state; SLURM's answers only add to it. The queue is listed at most once every `EVERY` seconds,
for any number of runs, shells and people, because the answer is cached under the runs root. It is listed for all who
submitted from that root: a group may share one. Without an accounting
database `sacct` fails, so it is called only if the profile has `has_sacct`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from mimbench.jobs.runs.lock import lock
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.submission import owners

T = TypeVar("T")

EVERY = 10.0  # seconds between two listings of the queue
PATIENCE = 30.0  # timeout in seconds of a SLURM command
SILENT = (  # messages of SLURM's commands when the controller cannot be reached (not a refusal)
    "unable to contact slurm controller", "socket timed out", "connection refused", "communication connection failure",
    "slurm controller not responding", "transport endpoint", "connection timed out", "slurmctld in standby",
    "unable to establish controller", "could not establish a configuration source", "zero bytes were transmitted",
    "munge encode failed", "munge decode failed", "protocol authentication error",
)  # fmt: skip
UNREACHED = (  # of those
    "connect failure", "connection refused", "could not establish a configuration source", "munge encode failed",
)  # fmt: skip
LIMIT = re.compile(r"\b(?:assoc|qos)\w*submitjob\w*", re.IGNORECASE)  # AssocMaxSubmitJobLimit and its kin
USUAL = (  # reasons for which a job waits that need no remark
    "", "None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Cleaning", "Prolog",
)  # fmt: skip
NEVER = "DependencyNeverSatisfied"  # it waits for a job that failed or was cancelled
HELD = ("JobHeldUser", "JobHeldAdmin", "job requeued in held state", "launch failed requeued held")
KEYS = {  # words in SLURM's refusals -> the key of the profile to change
    "account": "account", "partition": "partition", "qos": "qos", "feature": "constraint", "time limit": "minutes",
    "generic resource": "gpu_request, gpu_type or gpus_per_node", "gres": "gpu_request or gpu_type",
    "--export": "export", "memory": "memory_gb", "wckey": "wckey", "reservation": "sbatch",
    "unrecognized option": "sbatch", "invalid option": "sbatch",
    "node configuration": "cpus_per_task, memory_gb or gpus_per_node", "processors": "cpus_per_task",
    "cpu count": "cpus_per_task", "node count": "the number of nodes",
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


class LimitError(OSError):
    """The site's limit on the jobs that a person may have in the queue is reached; there is room again later."""


class Listing(NamedTuple):
    """The queue by job id (`123` or `123_4`)."""

    states: dict[str, str]  # as squeue spells them
    names: dict[str, str]
    reasons: dict[str, str]  # of waiting jobs, unless it is one of `USUAL`
    ran: dict[str, int]  # seconds since the job started or restarted, of running jobs


class Queue(dict[str, str]):
    """State (as squeue spells it) by job id (`123` or `123_4`), the time of the listing, and whether SLURM answered.

    `reasons` and `ran` as in `Listing`.
    """

    def __init__(
        self,
        jobs: dict[str, str],
        names: dict[str, str],
        asked: float,
        answered: bool,
        reasons: Mapping[str, str] | None = None,
        ran: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(jobs)
        self.names, self.asked, self.answered = names, asked, answered
        self.reasons, self.ran = dict(reasons or {}), dict(ran or {})


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
    """Return SLURM's message as an error: no answer, a limit, or a refusal with the key of the profile to change."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in said.strip().splitlines()]
    words = "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"
    low = words.lower()
    if any(phrase in low for phrase in SILENT):
        unreached = any(phrase in low for phrase in UNREACHED)
        return (UnreachableError if unreached else SilentError)(f"SLURM does not answer: {words}")
    if limit := LIMIT.search(words):
        return LimitError(f"SLURM accepts no more of your jobs now ({limit[0]})")
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
    try:
        with lock(file.with_suffix(".lock"), wait=5):
            if (kept := _kept(file)) is not None:  # another shell listed it while this one waited
                return kept
            return _fresh(file, root)
    except OSError:  # the root cannot be written
        return _fresh(file, root)
    except ValueError:  # another shell lists it, slowly
        pass
    return _kept(file, anyhow=True) or Queue({}, {}, 0.0, answered=False)


def _kept(file: Path, anyhow: bool = False) -> Queue | None:
    try:
        found = Queue(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if anyhow or 0 <= time.time() - found.asked < EVERY else None


def _fresh(file: Path, root: Path) -> Queue:
    asked = time.time()  # before the command: jobs submitted after it may be missing from the answer
    try:
        seen = listing(root)
        found = Queue(seen.states, seen.names, asked, True, seen.reasons, seen.ran)
    except (OSError, ValueError):
        found = Queue({}, {}, asked, answered=False)
    value = {"jobs": dict(found), "names": found.names, "asked": asked, "answered": found.answered}
    value |= {"reasons": found.reasons, "ran": found.ran}
    temporary = file.with_suffix(".tmp")
    with suppress(OSError):  # a full or read-only disk loses the cache, not the answer
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(file)
    return found


def listing(root: Path | None = None) -> Listing:
    """Return the current queue of this user, and of all who submitted from `root`; each run of an array is separate."""
    users = ",".join(map(str, sorted({os.getuid(), *(owners(root) if root is not None else ())})))
    lines = ask("squeue", "-h", "-r", "-u", users, "-o", "%i|%T|%M|%r|%j").splitlines()
    rows = [line.split("|", 4) for line in lines if line.count("|") >= 4]
    return Listing(
        {job: state for job, state, _, _, _ in rows},
        {job: name for job, _, _, _, name in rows},
        {job: reason for job, state, _, reason, _ in rows if state == "PENDING" and reason not in USUAL},
        {job: seconds_of(ran) for job, state, ran, _, _ in rows if state == "RUNNING"},
    )


def seconds_of(text: str) -> int:
    """Return a duration such as `1-02:03:04` or `3:04` in seconds; 0 for what is none (`INVALID`)."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def minutes_of(text: str) -> int | None:
    """Return a time limit such as `1-12:00:00` in minutes; None for no limit."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not parts[0].isdigit():
        return None
    hours, minutes = (int(parts[0]), int(parts[1])) if len(parts) == 3 else (0, int(parts[0]))
    return int(days or 0) * 1440 + hours * 60 + minutes


def restarts_of(job: str) -> int | None:
    """Return how often SLURM has restarted a job; None if it does not say."""
    found = _shown(r"\bRestarts=(\d+)", job)
    return int(found) if found else None


def was_preempted(job: str) -> bool:
    """Return whether SLURM ends a job for another one and will not start it again (`PreemptMode=CANCEL`)."""
    return _shown(r"\bPreemptTime=(\d)", job) is not None


def _shown(pattern: str, job: str) -> str | None:
    """Return the group of `pattern` in what SLURM shows of a job; None without one, or without an answer."""
    try:
        found = re.search(pattern, ask("scontrol", "show", "job", job))
    except (ValueError, OSError):
        return None
    return found[1] if found else None


def patiently(call: Callable[[], T], seconds: float, pause: float = 5.0) -> T:
    """Return what `call` returns, repeating it for up to `seconds` while SLURM does not answer.

    Raises:
        SilentError: if it still does not answer then.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except SilentError:
            if time.monotonic() > deadline:
                raise
            time.sleep(pause)


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
    states = listing().states
    if waiting := [job for job in jobs if states.get(job) == "PENDING"]:
        ask("scontrol", "update", f"JobId={','.join(waiting)}", "Dependency=")


def let_go(job: str) -> None:
    """Release a job that is held, by a person or because a node refused to launch it.

    Raises:
        ValueError: with SLURM's message, if it refuses: only an administrator can release what one holds.
        SilentError: if the controller cannot be reached.
    """
    ask("scontrol", "release", job)


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
