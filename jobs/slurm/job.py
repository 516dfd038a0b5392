"""Inside a SLURM job: its ranks and where they meet, what may start before its end, whether it goes back to the queue.

    python -m mimbench.jobs.slurm.job RUN_DIR JOB CODE   # the last line of every sbatch file

A job that is preempted, nears its time limit or loses a process to a kill goes back into the queue under the same id,
and its next start goes on from the newest checkpoint. One that failed by its own error stays failed, one that was
cancelled stays cancelled, and one that three times over got no further is given up, with the reason.

Nothing is saved when SLURM's warning arrives: checkpoints are written on schedule. What is lost is the time since.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.failed_images import failed_before, note_image
from mimbench.jobs.runs.heartbeat import every
from mimbench.jobs.runs.tasks import makes_encoders
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.submission import ATTEMPTS, LINK, read

log = logging.getLogger(__name__)

MEETING = "rendezvous"  # in a run directory, while it runs: where the first process is, and errors of the others
PATIENCE = 600.0  # seconds that ranks wait for the first one to say where they meet
LOOK = 5.0  # seconds between two looks for encoders that a pretraining leaves on its way
PORTS = range(20000, 32000)  # below 32768, where Linux takes ports for outgoing connections from
EMPTY_STARTS = 3  # restarts of a job whose process died before it could record that it began
ENDED_BY_ITSELF = ("done", "failed")
PEER = re.compile(r"closed by peer|connection (reset|refused)|broken pipe|nccl|socket|gloo|heartbeat", re.IGNORECASE)


def current() -> str | None:
    """The job that an sbatch file of ours made this process part of: `12`, or `12_3` in an array."""
    return os.environ.get("MIMBENCH_JOB_ID") if "SLURM_JOB_ID" in os.environ else None


def warning() -> signal.Signals | None:
    """The signal by which SLURM announces a preemption or the time limit; None outside a job."""
    name = os.environ.get("MIMBENCH_JOB_WARNING", "USR2")
    return signal.Signals[f"SIG{name}"] if current() else None


# ------------------------------------------------------------------------------------------------- ranks, rendezvous


def take_ranks() -> None:
    """Set torch's variables from srun's, where srun started several processes and no launcher has set them."""
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
    """Settle where the ranks of this start meet: the first finds a free port, and the others read it in a file.

    Raises:
        OSError: if the first one has said nothing for `PATIENCE` seconds.
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
    """Remove what ranks told each other."""
    shutil.rmtree(run.path / MEETING, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens on, of those that outgoing connections do not take."""
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
        if file.parent.is_dir() and file.name in os.listdir(file.parent):  # noqa: PTH208 (NFS: a listing is asked for)
            place: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return place
        time.sleep(0.1)
    raise OSError(
        f"{file}: the first process has not said where to meet in {PATIENCE:.0f} s; do all nodes share this directory?"
    )


# ------------------------------------------------------------------------------------------- attempts and their ends


def settle(run: RunDir) -> None:
    """Record as lost a start that only seems to be running: SLURM never runs one job twice at a time.

    Another host's process is believed to live for minutes after its last sign; a job that comes back need not wait.
    """
    job, attempts = current(), run.attempts()
    if job is None or not attempts or attempts[-1]["state"] != "running":
        return
    before = attempts[-1].get("job")
    if before == job or (before is not None and slurm.state_of(before) is None):
        run.end_attempt(len(attempts), "lost", "its process was killed, or its node failed")


def steps_done(run: RunDir) -> int:
    """Optimiser steps that the newest checkpoint has behind it; 0 without one."""
    return max((int(file.stem.rpartition("-")[2]) for file in run.checkpoints.glob("step-*.pt")), default=0)


def no_progress(run: RunDir, limit: int = ATTEMPTS) -> str | None:
    """Why the start that has just begun should be the end: those before it, `limit` in a row, got no further.

    Counts what a scheduler started since a person last submitted the run, and was stopped from outside.
    """
    submission = read(run)
    *before, now = run.attempts()
    since = submission.submitted if submission else 0.0
    latest = [attempt for attempt in before if attempt["started"] > since][-limit:]
    stuck = [
        attempt
        for attempt in latest
        if attempt["state"] not in ENDED_BY_ITSELF and attempt.get("step") == now.get("step") and attempt.get("job")
    ]
    if len(stuck) < limit:
        return None
    reasons = ", ".join(dict.fromkeys(attempt.get("why") or "killed" for attempt in stuck))
    return (
        f"given up: {limit} attempts in a row made no progress after step {now.get('step', 0)} ({reasons}); save more "
        "often (compute.save_every) or ask for more time or memory, then `mimbench retry` it"
    )


def is_loss_of_peer(error: BaseException) -> bool:
    """Whether an error looks like what the death of another rank does to this one."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and isinstance(error, RuntimeError) and bool(PEER.search(f"{type(error).__name__}: {error}"))


def note_rank_error(run: RunDir, why: str, image: str | None = None) -> None:
    """Leave word that this rank, not the first, failed by an error of its own, at `image` if at one."""
    file = run.path / MEETING / f"error-{os.environ.get('RANK')}.json"
    write_json(file, {"why": why, "image": image, "rank": os.environ.get("RANK"), "time": time.time()})


def _rank_error(run: RunDir, since: float) -> tuple[str, str | None] | None:
    """What another rank said was wrong after the time `since`, and the image it was about."""
    for file in sorted((run.path / MEETING).glob("error-*.json")):
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["time"] >= since:
            return f"process {said['rank']}: {said['why']}", said.get("image")
    return None


# -------------------------------------------------------------------------------------- evaluations of what is there


@contextmanager
def releasing(run: RunDir) -> Iterator[None]:
    """Within, evaluations that wait for an encoder of this pretraining may start as soon as the encoder is there.

    They were submitted to wait for the end of this job (`afterok`), and do so where a node may not change that.
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
    """Take the dependency from jobs that wait for this run and whose encoder it has left already."""
    try:
        if jobs := list(_waiting_for(run)):
            slurm.release(jobs)
    except (ValueError, OSError) as error:
        log.warning("evaluations of encoders on the way wait for the end: %s", error)


def _waiting_for(run: RunDir) -> Iterator[str]:
    """The jobs that need nothing but an encoder which this run has left."""
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


def verdict(run: RunDir, job: str, restarts: int) -> str | None:
    """Why the job must not go back into the queue; None if it should."""
    attempts = [attempt for attempt in run.attempts() if attempt.get("job") == job]
    if attempts:
        last = attempts[-1]
        if last["state"] in ENDED_BY_ITSELF:
            return f"the run is {last['state']}"
        if error := _rank_error(run, last["started"]):
            number, (why, image) = len(run.attempts()), error
            why += failed_before(run, number, image)
            run.end_attempt(number, "failed", why)
            note_image(run, number, image)
            return why
    if len(attempts) <= restarts - EMPTY_STARTS:
        return f"its process died {EMPTY_STARTS} times before it began"
    state = slurm.state_of(job)
    return None if state == "RUNNING" else f"SLURM is ending the job itself ({state})"


def main(arguments: list[str]) -> int:
    """Decide, and say so; what is printed is in the job's output."""
    run, job, code = RunDir(Path(arguments[0])), arguments[1], arguments[2]
    try:
        why = verdict(run, job, int(os.environ.get("SLURM_RESTART_COUNT", "0")))
        if why is None:
            slurm.requeue(job)
    except (ValueError, OSError) as error:
        why = str(error)
    said = "back into the queue, to go on from the last checkpoint" if why is None else f"stays out of the queue: {why}"
    print(f"job {job} ended with {code}; {said}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
