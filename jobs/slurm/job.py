"""Inside a SLURM job: its ranks and their rendezvous, dependent jobs that can start early, and its requeueing.

    python -m mimbench.jobs.slurm.job RUN_DIR JOB CODE   # the last line of every sbatch file

A job that is preempted, nears its time limit or has a process killed is requeued under the same id, and its next start
resumes from the newest checkpoint. A job that failed by its own error stays failed, a cancelled job stays cancelled,
and a job that made no progress three times is given up, with the reason. A preemption does not count among the three,
unless the job had half of its time limit before.

Nothing is saved when SLURM's warning arrives: checkpoints are written on schedule. Steps since the last one are lost.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir, process_started
from mimbench.jobs.runs.failed_images import failed_before, note_image
from mimbench.jobs.runs.heartbeat import every
from mimbench.jobs.runs.tasks import makes_encoders
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.submission import ATTEMPTS, LINK, read

log = logging.getLogger(__name__)

MEETING = "rendezvous"  # in a run directory while it runs: address of rank 0 and errors of the other ranks
PATIENCE = 600.0  # seconds that ranks wait for the address of rank 0
ANSWER = 600.0  # seconds that the end of a job waits for an answer of SLURM, to be requeued
LOOK = 5.0  # seconds between two checks for intermediate encoders of a pretraining
PORTS = range(20000, 32000)  # below 32768, where the ports of outgoing connections begin on Linux
EMPTY_STARTS = 3  # restarts of a job whose process died before it recorded its start
ENDED_BY_ITSELF = ("done", "failed", "stopped")
OUTSIDE, KILLED = "from outside", "killed"  # `stopped` of an attempt: by SLURM or a person, or a process of it died
PEER = re.compile(r"closed by peer|connection (reset|refused)|broken pipe|nccl|socket|gloo|heartbeat", re.IGNORECASE)


def current() -> str | None:
    """Return the id of the job that runs this process, if our sbatch file started it: `12`, or `12_3` in an array."""
    return os.environ.get("MIMBENCH_JOB_ID") if "SLURM_JOB_ID" in os.environ else None


def facts() -> dict[str, Any]:
    """Return what an attempt records of the job that runs it: its id, its restart, its number of processes."""
    job = current()
    world = {"restart": restarts(), "world": int(os.environ.get("WORLD_SIZE", "1"))} if job else {}
    return {"job": job, **world}


def warning() -> signal.Signals | None:
    """Return the signal by which SLURM announces a preemption or the time limit; None outside a job."""
    name = os.environ.get("MIMBENCH_JOB_WARNING", "USR2")
    return signal.Signals[f"SIG{name}"] if current() else None


# ------------------------------------------------------------------------------------------------- ranks, rendezvous


def take_ranks() -> None:
    """Set torch's variables from srun's, if srun started several processes and no launcher has set them."""
    world = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if world < 2 or "RANK" in os.environ:
        return
    here = int(re.match(r"\d+", os.environ["SLURM_STEP_TASKS_PER_NODE"].split(",")[0])[0])  # type: ignore[index]
    ranks = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(here),
    }
    os.environ.update(ranks)


def meet(run: RunDir) -> None:
    """Set the rendezvous of the ranks: rank 0 finds a free port, and the others read it from a file.

    Raises:
        OSError: if rank 0 writes no address within `PATIENCE` seconds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "MASTER_ADDR" in os.environ:
        return
    step = "-".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
    file = run.path / MEETING / f"at-{step}.json"
    if os.environ["RANK"] == "0":
        one_node = os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1"
        write_json(file, {"address": "127.0.0.1" if one_node else socket.gethostname(), "port": free_port()})
        for old in file.parent.glob("at-*.json"):
            if old != file:
                old.unlink(missing_ok=True)
    place = _wait_for(file)
    os.environ.update(MASTER_ADDR=place["address"], MASTER_PORT=str(place["port"]))


def part(run: RunDir) -> None:
    """Remove the files through which ranks communicated."""
    shutil.rmtree(run.path / MEETING, ignore_errors=True)


def free_port() -> int:
    """Return a free port outside the range of outgoing connections."""
    first = os.getpid() * 7 % len(PORTS)
    for port in (*PORTS[first:], *PORTS[:first]):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop} on {socket.gethostname()}")


def _wait_for(file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if file.parent.is_dir() and file.name in os.listdir(file.parent):  # noqa: PTH208 (NFS needs a fresh listing)
            place: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return place
        time.sleep(0.1)
    raise OSError(f"{file}: no address of rank 0 after {PATIENCE:.0f} s; check that all nodes share this directory")


# ------------------------------------------------------------------------------------------- attempts and their ends


def settle(run: RunDir) -> None:
    """Record a start as lost if it only seems to be running: SLURM never runs a job twice at the same time.

    A process of another host counts as alive for minutes after its last heartbeat; a restarted job need not wait.
    """
    job, attempts = current(), run.attempts()
    if job is None or not attempts or attempts[-1]["state"] != "running":
        return
    before = attempts[-1].get("job")
    if before == job or (before is not None and slurm.state_of(before) is None):
        run.end_attempt(len(attempts), "lost", "its process was killed, or its node failed")


def steps_done(run: RunDir) -> int:
    """Return the optimiser steps of the newest checkpoint; 0 without a checkpoint."""
    return max((int(file.stem.rpartition("-")[2]) for file in run.checkpoints.glob("step-*.pt")), default=0)


def last_of(run: RunDir) -> RunDir:
    """Return the run that the job of `run` went on with, if `run` stopped early and promoted another; else `run`."""
    attempts = run.attempts()
    name = attempts[-1].get("heir") if attempts and attempts[-1]["state"] == "stopped" else None
    return run if name is None else last_of(RunDir(run.path.absolute().parents[1] / name))


def no_progress(run: RunDir, limit: int = ATTEMPTS) -> str | None:
    """Return why the run is given up: `limit` starts in a row made no progress; None if it should continue.

    Counts the starts by a scheduler since a person last submitted the run that ended because a process was killed, or
    that had half of the job's time limit. A start that SLURM ended earlier (preemption, node failure) does not count.
    """
    submission = read(run)
    *before, now = run.attempts()
    since, minutes = (submission.submitted, submission.resources["minutes"]) if submission else (0.0, 0)
    counted = [a for a in before if a["started"] > since and not _is_excused(a, minutes * 60 / 2)][-limit:]
    stuck = [
        attempt
        for attempt in counted
        if attempt["state"] not in ENDED_BY_ITSELF and attempt.get("step") == now.get("step") and attempt.get("job")
    ]
    if len(stuck) < limit:
        return None
    reasons = ", ".join(dict.fromkeys(attempt.get("why") or "killed" for attempt in stuck))
    return (
        f"given up: {limit} attempts in a row made no progress after step {now.get('step', 0)} ({reasons}); save more "
        "often (compute.save_every) or request more time or memory, then start it with `mimbench retry`"
    )


def _is_excused(attempt: dict[str, Any], enough: float) -> bool:
    """Return whether SLURM or a person ended an attempt before it had `enough` seconds: it does not count."""
    if attempt["state"] in ENDED_BY_ITSELF or attempt.get("stopped") == KILLED:
        return False
    return "ended" not in attempt or attempt["state"] == "lost" or attempt["ended"] - attempt["started"] < enough


def is_loss_of_peer(error: BaseException) -> bool:
    """Return whether an error looks like a consequence of the death of another rank."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and isinstance(error, RuntimeError) and bool(PEER.search(f"{type(error).__name__}: {error}"))


def note_rank_error(run: RunDir, why: str, image: str | None = None) -> None:
    """Record that this rank, not rank 0, failed by its own error, at `image` if any."""
    file = run.path / MEETING / f"error-{os.environ.get('RANK')}.json"
    write_json(file, {"why": why, "image": image, "rank": os.environ.get("RANK"), "time": time.time()})


def note_signal(run: RunDir) -> None:
    """Record that a signal reached this rank: a rank without such a record was killed before the others."""
    write_json(run.path / MEETING / f"signal-{os.environ.get('RANK', '0')}.json", {"time": time.time()})


def _stopped(run: RunDir, attempt: dict[str, Any], code: int) -> str:
    """Return how an attempt was stopped: `OUTSIDE` if its end is recorded and a signal reached all of its ranks."""
    if attempt["state"] != "interrupted" or code == 128 + signal.SIGKILL:
        return KILLED
    told = [json.loads(file.read_text(encoding="utf-8")) for file in (run.path / MEETING).glob("signal-*.json")]
    others = sum(record["time"] >= attempt["started"] for record in told)
    announced = code - 128 in (signal.SIGUSR1, signal.SIGUSR2)
    return OUTSIDE if announced or others + 1 >= attempt.get("world", 1) else KILLED


def _rank_error(run: RunDir, since: float) -> tuple[str, str | None] | None:
    """Return the error and the image that another rank recorded after the time `since`."""
    for file in sorted((run.path / MEETING).glob("error-*.json")):
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["time"] >= since:
            return f"process {said['rank']}: {said['why']}", said.get("image")
    return None


# ------------------------------------------------------------------------------- evaluations of intermediate encoders


@contextmanager
def releasing(run: RunDir) -> Iterator[None]:
    """Release evaluations within the block as soon as this pretraining has written the encoders they wait for.

    They were submitted to wait for the end of this job (`afterok`); they do so if a node cannot change that.
    """
    if current() is None or not makes_encoders(run.read_about()["stage"]):
        yield
        return
    seen: set[str] = set()

    def look() -> None:
        nonlocal seen
        there = {file.name for file in run.encoder_at(0).parent.glob("*.safetensors")}
        if there - seen:
            seen = there
            let_start(run)

    with every(LOOK, look, "releasing"):
        yield


def let_start(run: RunDir) -> None:
    """Remove the dependency of jobs that wait for an encoder this run has already written."""
    try:
        if jobs := list(_waiting_for(run)):
            slurm.release(jobs)
    except (ValueError, OSError) as error:
        log.warning("evaluations of intermediate encoders wait for the end of this job: %s", error)


def _waiting_for(run: RunDir) -> Iterator[str]:
    """Yield the jobs that need only an encoder this run has already written."""
    root, identity = run.path.absolute().parents[1], run.read_about()["identity"]
    for link in root.glob(f"*/*/{LINK}"):
        other = RunDir(link.parent)
        about, found = other.read_about(), read(other)
        checkpoint = about.get("checkpoint") or {}
        is_mine = str(checkpoint.get("run")).startswith(f"{identity}@") and Path(checkpoint["path"]).is_file()
        needs = [RunDir(root / need) for need in about["needs"]]
        if is_mine and found and found.job and all(n.path.name == run.path.name or n.state() == "done" for n in needs):
            yield found.job


# ---------------------------------------------------------------------------------------------- at the end of the job


def verdict(run: RunDir, job: str, restarts: int, state: str | None = None) -> str | None:
    """Return why the job must not be requeued; None if it should be. Without `state`, asks SLURM for the job's."""
    attempts = [attempt for attempt in run.attempts() if attempt.get("job") == job]
    if attempts:
        last = attempts[-1]
        if last["state"] in ENDED_BY_ITSELF:
            return f"the run is {last['state']}"
        if last.get("restart", restarts) > restarts:  # the node was cut off, and SLURM started the job elsewhere
            return "a later start of this job runs it"
        if error := _rank_error(run, last["started"]):
            number, (why, image) = len(run.attempts()), error
            why += failed_before(run, number, image)
            run.end_attempt(number, "failed", why)
            note_image(run, number, image)
            return why
    if len(attempts) <= restarts - EMPTY_STARTS:
        return f"its process died {EMPTY_STARTS} times before the run began"
    if state is None:
        state = slurm.state_of(job)
        if state != "RUNNING" and slurm.was_preempted(job):
            return None
    return None if state == "RUNNING" else f"SLURM is ending the job itself ({state})"


def requeue_without_shell(run: RunDir, number: int) -> None:
    """Requeue this job if the shell of its sbatch file, which would do it, was killed; not if a later start runs.

    SLURM ends a job whose shell is gone as failed and sends the run a signal first: a few seconds to ask for a requeue.
    """
    if run.is_superseded(number):  # the node was cut off: a requeue would stop the start on another node
        return
    job, shell = current(), os.environ.get("MIMBENCH_JOB_SHELL", "")
    node, _, pid = shell.rpartition(":")
    if job is None or not node or node != os.environ.get("SLURMD_NODENAME") or process_started(int(pid)) is not None:
        return
    try:
        slurm.patiently(lambda: slurm.requeue(job), 20.0, 2.0)
    except (ValueError, OSError) as error:
        log.warning("the shell of job %s was killed, and it cannot be requeued: %s", job, error)
    else:
        log.warning("the shell of job %s was killed; the job is requeued to resume from the last checkpoint", job)


def is_orphan(parent: int) -> bool:
    """Return whether SLURM's process of the step, which was this process's `parent`, was killed: srun then hangs."""
    return current() is not None and os.getppid() != parent


def end_srun() -> None:
    """Kill the srun that waits for a step whose end it will not hear of, so that the job's shell goes on."""
    import psutil

    node, _, pid = os.environ.get("MIMBENCH_JOB_SHELL", "").rpartition(":")
    if not node or node != os.environ.get("SLURMD_NODENAME"):
        return
    with suppress(psutil.Error):
        for child in psutil.Process(int(pid)).children():
            if child.name() == "srun":
                child.kill()


def restarts() -> int:
    """Return how often SLURM has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def main(arguments: list[str]) -> int:
    """Decide whether to requeue the job, and print the decision to the job's output.

    With a fourth argument, the job's state, nothing is asked of SLURM (a container has no SLURM): the shell requeues
    the job if this returns 0.
    """
    run, job, code, *state = last_of(RunDir(Path(arguments[0]))), *arguments[1:]
    try:
        why = slurm.patiently(lambda: verdict(run, job, restarts(), *state), ANSWER)
        if why is None:
            _note_end(run, job, int(code))
            if not state:
                slurm.patiently(lambda: slurm.requeue(job), ANSWER)
    except (ValueError, OSError) as error:
        why = str(error)
    said = "requeued to resume from the last checkpoint" if why is None else f"not requeued: {why}"
    print(f"job {job} ended with {code}; {said}", file=sys.stderr)
    return int(bool(state) and why is not None)


def _note_end(run: RunDir, job: str, code: int) -> None:
    """Record how the last attempt was stopped, if it is this job's and has begun in this start."""
    attempts = run.attempts()
    if attempts and attempts[-1].get("job") == job and attempts[-1].get("restart") == restarts():
        run.amend_attempt(len(attempts), {"stopped": _stopped(run, attempts[-1], code)})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
