"""Runs on a cluster: hand them in, see what became of them, take them back.

    cluster = load("a100")
    units = [Unit(run, cluster.shape(gpus=8), needs=(), name="crossmae_vitb"), ...]
    submit(units, cluster, root)              # one call of sbatch for each array
    status_of(run, queue(cluster, root))      # files first, then the queue, then accounting, then the heartbeat

What is handed in is noted on disk first. If SLURM is silent it stays noted, and the next `submit` takes it along;
whatever is noted, queued, running or done is not handed in again, by whoever and however many.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.lock import lock
from mimbench.jobs.slurm import arrays, submission
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.arrays import Unit
from mimbench.jobs.slurm.cluster import Cluster, Shape
from mimbench.jobs.slurm.commands import Queue, queue
from mimbench.jobs.slurm.snapshot import snapshot
from mimbench.jobs.slurm.submission import Batch, Submission

if TYPE_CHECKING:
    from mimbench.jobs.slurm.sbatch import Executor

__all__ = ["Queue", "Shape", "Submission", "Unit", "cancel", "queue", "requeue", "status_of", "submit", "waiting"]

log = logging.getLogger(__name__)

Status = Literal["new", "queued", "running", "done", "failed", "interrupted", "lost", "blocked"]

WAIT = 120.0  # seconds for another shell that is submitting
SMALL_ARRAY = 100  # runs in an array when SLURM cannot be asked how many it takes
BACK_OFF = (2.0, 4.0, 8.0)  # seconds between tries when SLURM is silent
ENDING = ("COMPLETING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")  # SLURM holds a process of it


def submit(units: Sequence[Unit], cluster: Cluster, root: Path, *, dry: bool = False) -> list[Submission] | str:
    """Hand in the runs that are not done, running or queued; the submissions of `units`, then of what waited before.

    With `dry` nothing is handed in: the sbatch files, one after the other, which a person can hand in.

    Raises:
        ValueError: in SLURM's words and with the profile's key, if it refuses; what it refused is not noted.
        OSError: if SLURM is silent; everything stays noted for the next time.
    """
    root = root.absolute()
    units = [unit._replace(run=RunDir(unit.run.path.absolute())) for unit in units]
    check(cluster, root)
    if dry:
        return "\n".join(_written(batch, cluster) for batch in _example(units, cluster, root))
    with lock(root / ".mimbench" / "submit", wait=WAIT):
        queued, before = _queued_now(units), submission.unsent(root)
        wanted = [unit for unit in units if unit.run.path not in queued and unit.run.state() not in ("done", "running")]
        batches = _noted(wanted, cluster, root) if wanted else []
        _send_all([*before, *batches], cluster, fresh={batch.id for batch in batches})
    waited = (RunDir(root / path) for batch in before if batch.cluster == cluster.name for path in batch.runs.values())
    runs = dict.fromkeys([*(unit.run for unit in units), *waited])
    return [found for run in runs if (found := submission.read(run)) is not None]


def waiting(cluster: Cluster, root: Path) -> int:
    """Hand in what was noted while SLURM was silent; how many runs that were.

    Raises:
        OSError: if it still is.
    """
    root = root.absolute()
    if not submission.unsent(root):
        return 0
    with lock(root / ".mimbench" / "submit", wait=WAIT):
        batches = submission.unsent(root)
        _send_all(batches, cluster)
    return sum(len(batch.runs) for batch in batches if batch.cluster == cluster.name)


def check(cluster: Cluster, root: Path) -> None:
    """That the cluster can be submitted to from here, and its nodes will see the runs.

    Raises:
        ValueError: saying which key of the profile is wrong.
    """
    if cluster.kind != "slurm":
        raise ValueError(f"cluster {cluster.name} is this machine: nothing is submitted to it")
    shared = Path(cluster.shared_root).expanduser().resolve() if cluster.shared_root else None
    if shared is not None and not root.resolve().is_relative_to(shared):
        raise ValueError(
            f"the runs are in {root.resolve()}, which the nodes of cluster {cluster.name} do not share: "
            f"set MIMBENCH_RUNS to a directory under shared_root={cluster.shared_root}"
        )


def _noted(units: Sequence[Unit], cluster: Cluster, root: Path) -> list[Batch]:
    """Batches of these units, written down as about to be handed in."""
    try:
        size = slurm.max_array(cluster)
    except slurm.SilentError:
        size = SMALL_ARRAY
    batches = arrays.plan(units, root, size, cluster.name, snapshot(root))
    for batch in batches:
        batch.note()
    return batches


def _queued_now(units: Sequence[Unit]) -> set[Path]:
    """Those of the units that a job waits or runs for, by what SLURM says this moment."""
    found = {unit.run.path: submission.read(unit.run) for unit in units}
    known = {path: one for path, one in found.items() if one is not None}
    if not known:
        return set()
    try:
        states, _ = slurm.listing()
    except slurm.SilentError:
        return set(known)  # nobody knows; they are asked for again
    return {path for path, one in known.items() if one.job is None or one.job in states}


# ---------------------------------------------------------------------------------------------------------- handing in


def _executor(batch: Batch, cluster: Cluster, dependency: str | None) -> Executor:
    from mimbench.jobs.slurm.sbatch import Executor  # imports submitit

    return Executor(batch, cluster, dependency)


def _send_all(batches: Iterable[Batch], cluster: Cluster, fresh: Container[str] = ()) -> None:
    """Hand in one batch after the other, those that others need first. `fresh` ones SLURM cannot know yet."""
    left, refused = [batch for batch in batches if batch.cluster == cluster.name], None
    while left:
        batch = left.pop(0)
        try:
            _send(batch, cluster, batch.id in fresh)
        except slurm.SilentError as error:
            runs = sum(len(each.runs) for each in (batch, *left))
            raise slurm.SilentError(
                f"{error}. {runs} runs are noted, and the next `mimbench submit` or `mimbench watch` submits them"
            ) from None
        except ValueError as error:
            refused = refused or error
            left = _withdraw(batch, left)
    if refused is not None:
        raise refused


def _withdraw(refused: Batch, left: list[Batch]) -> list[Batch]:
    """Forget a batch and all that needs it; what is left."""
    gone = set(refused.runs.values())
    refused.withdraw()
    kept = []
    for batch in left:
        if gone & {path for needs in batch.needs.values() for path in needs}:
            gone |= set(batch.runs.values())
            batch.withdraw()
        else:
            kept.append(batch)
    return kept


def _send(batch: Batch, cluster: Cluster, fresh: bool) -> None:
    """Hand in one batch, trying again while SLURM is silent, and looking first whether it has it already."""
    for pause in (*BACK_OFF, None):
        try:
            job = None if fresh else _accepted_before(batch)
            batch.accepted(job or _executor(batch, cluster, _dependency(batch)).send())
            return
        except slurm.SilentError:
            if pause is None:
                raise
            log.warning("SLURM does not answer; trying again in %.0f s", pause)
            time.sleep(pause)
        fresh = False


def _accepted_before(batch: Batch) -> str | None:
    """The job id, if the queue has the batch: sbatch may have been cut off after SLURM took the job."""
    _, names = slurm.listing()
    jobs = [job for job, name in names.items() if name == batch.job_name]
    return jobs[0].partition("_")[0] if jobs else None


def _dependency(batch: Batch) -> str | None:
    """sbatch's --dependency: the jobs of those needs that are not done."""
    pending = {
        index: [read for path in needs if (read := _pending(RunDir(batch.root / path))) is not None]
        for index, needs in batch.needs.items()
    }
    jobs = [found for each in pending.values() for found in each]
    if not jobs:
        return None
    one_array = len({found.array for found in jobs}) == 1 and jobs[0].array is not None
    matching = all(found.index == index for index, each in pending.items() for found in each)
    if len(batch.runs) > 1 and one_array and matching:
        return f"aftercorr:{jobs[0].array}"
    return "afterok:" + ":".join(sorted({found.job for found in jobs if found.job}))


def _pending(need: RunDir) -> Submission | None:
    found = submission.read(need) if need.state() != "done" else None
    if found is not None and found.job is None:
        raise slurm.SilentError(f"what it needs, {need.path}, is not submitted yet")
    return found


def _example(units: Sequence[Unit], cluster: Cluster, root: Path) -> list[Batch]:
    """What would be handed in now. A batch has the same name each time it is shown."""
    batches = arrays.plan(units, root, cluster.max_array or 1001, cluster.name, snapshot(root))
    names = (hashlib.sha256("".join(batch.runs.values()).encode()).hexdigest()[:8] for batch in batches)
    return [replace(batch, id=f"by-hand-{name}") for batch, name in zip(batches, names, strict=True)]


def _written(batch: Batch, cluster: Cluster) -> str:
    """The sbatch file, ready to be handed in but for the numbers of jobs that others are to wait for."""
    batch.folder.mkdir(parents=True, exist_ok=True)  # SLURM before 23.02 makes none for its output, and says nothing
    needs = sorted({path for paths in batch.needs.values() for path in paths})
    jobs = "afterok:" + ":".join(f"JOB_OF_{path.rpartition('/')[2]}" for path in needs) if needs else None
    return _executor(batch, cluster, jobs).text()


# ------------------------------------------------------------------------------------------------- seeing and steering


def status_of(run: RunDir, seen: Queue | dict[str, str], cluster: Cluster | None = None) -> Status:
    """What a run is doing: its files first, then the queue, then accounting (with `cluster`), then the heartbeat."""
    state = run.state()
    found = submission.read(run) if state != "done" else None
    if found is None:
        return "blocked" if state == "new" and _needs_failed(run) else state
    live = "NOTED" if found.job is None else seen.get(found.job)
    if live is not None:
        return _live(run, live, found)
    if not getattr(seen, "answered", True) or found.submitted >= getattr(seen, "asked", time.time()) - 1.0:
        waits = state in ("new", "interrupted", "lost") or (state == "failed" and _failed_before(run, found))
        return "queued" if waits else state  # the queue was asked too early to tell
    return _left(run, found, cluster)


def _failed_before(run: RunDir, found: Submission) -> bool:
    """Whether it was handed in again since it failed."""
    return float(run.attempts()[-1].get("ended", 0.0)) < found.submitted


def _live(run: RunDir, live: str, found: Submission) -> Status:
    """Of a run whose job is in the queue."""
    if live not in ENDING:
        return "queued"
    attempts = run.attempts()
    ended = attempts and attempts[-1].get("job") == found.job and attempts[-1]["state"] == "failed"
    return "failed" if ended else "running"


def _left(run: RunDir, found: Submission, cluster: Cluster | None) -> Status:
    """Of a run whose job has left the queue, and which is not done."""
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
    """Whether something it needs has failed, or waits in vain itself."""
    return any(need.state() == "failed" or _needs_failed(need) for need in _missing(run))


def _missing(run: RunDir) -> list[RunDir]:
    """What is not done of what it needs; of a pretraining it may need no more than an encoder that is there already."""
    about, root = run.read_about(), run.path.absolute().parents[1]
    checkpoint = about.get("checkpoint") or {}
    identity, _, epoch = str(checkpoint.get("run")).partition("@")
    left = identity if epoch and Path(checkpoint["path"]).is_file() else None
    needs = [RunDir(root / path) for path in about.get("needs", ()) if left is None or not path.endswith(f"-{left}")]
    return [need for need in needs if need.about.is_file() and need.state() != "done"]


def cancel(runs: Iterable[RunDir], cluster: Cluster) -> list[RunDir]:
    """End the jobs of these runs, and forget that they were submitted; those that had one.

    Raises:
        OSError: if SLURM is silent; then everything stays as it is.
    """
    found = [(run, one) for run in runs if (one := submission.read(run)) is not None and one.cluster == cluster.name]
    slurm.cancel({one.job for _, one in found if one.job})
    for run, one in found:
        if one.job is None:
            _leave(run, one)
        submission.clear(run)
    return [run for run, _ in found]


def _leave(run: RunDir, found: Submission) -> None:
    """Take a run out of a batch that is not handed in yet."""
    root = run.path.absolute().parents[1]
    batch = submission.read_batch(root, found.batch)
    runs = {index: path for index, path in batch.runs.items() if index != found.index}
    if runs:
        replace(batch, runs=runs).write()
    else:
        batch.withdraw()


def requeue(runs: Sequence[RunDir], cluster: Cluster, root: Path | None = None) -> None:
    """Start runs again: a job that runs goes back into the queue, one that is over is handed in anew.

    Either way the run goes on from its newest checkpoint, and what it needs is waited for.

    Raises:
        ValueError: in SLURM's words, if one cannot be; also for a run that was never submitted to this cluster.
        OSError: if SLURM is silent.
    """
    states, _ = slurm.listing()
    units = []
    for run in (RunDir(run.path.absolute()) for run in runs):
        found, top = submission.read(run), root.absolute() if root else run.path.parents[1]
        if found is None or found.cluster != cluster.name:
            raise ValueError(f"{run.path} has no job on cluster {cluster.name}: submit it")
        if found.job in states and states[found.job] == "RUNNING":
            slurm.requeue(found.job)
        elif found.job not in states:
            batch = submission.read_batch(top, found.batch)
            units.append(Unit(run, batch.shape, tuple(_missing(run)), batch.name))
    if units:
        submit(units, cluster, units[0].run.path.parents[1])
