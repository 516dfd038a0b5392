"""Runs on a cluster: submit them, cancel and requeue them. jobs/slurm/status.py looks up their states.

    cluster = load("a100")
    units = [Unit(run, cluster.shape(gpus=8), needs=(), name="crossmae_vitb"), ...]
    submit(units, cluster, root)              # one call of sbatch for each array
    status_of(run, queue(cluster, root))      # files first, then the queue, then accounting, then the heartbeat

Submissions are first recorded on disk. If SLURM cannot be reached, the record is removed. If it may have accepted a job
without answering, the record stays, and the next `submit` asks for the job or submits it. So do runs beyond the
site's limit on jobs in the queue. A run that is recorded, queued, running or done is not submitted again, by any user
or process.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.lock import lock
from mimbench.jobs.slurm import arrays, submission
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.arrays import Unit
from mimbench.jobs.slurm.cluster import Cluster, Shape
from mimbench.jobs.slurm.commands import Queue, queue
from mimbench.jobs.slurm.snapshot import snapshot
from mimbench.jobs.slurm.status import missing, remark, status_of
from mimbench.jobs.slurm.submission import Batch, Submission

if TYPE_CHECKING:
    from mimbench.jobs.slurm.sbatch import Executor

__all__ = [
    "Queue",
    "Shape",
    "Submission",
    "Unit",
    "cancel",
    "queue",
    "remark",
    "requeue",
    "status_of",
    "submit",
    "waiting",
]

log = logging.getLogger(__name__)

WAIT = 120.0  # seconds to wait for another shell that is submitting
SMALL_ARRAY = 100  # runs in an array if SLURM's limit cannot be asked
BACK_OFF = (2.0, 4.0, 8.0)  # seconds between attempts if SLURM does not answer


def submit(units: Sequence[Unit], cluster: Cluster, root: Path, *, dry: bool = False) -> list[Submission] | str:
    """Submit the runs that are not done, running or queued; return their submissions, then those recorded before.

    With `dry` nothing is submitted; return the sbatch files, one after the other, for submission by hand.

    Raises:
        ValueError: with SLURM's message and the profile's key, if it refuses; refused runs are not recorded.
        OSError: if SLURM cannot be reached, and nothing is recorded; or if it does not answer and may have accepted a
            job, and everything stays recorded for the next time.
    """
    root = root.absolute()
    units = [unit._replace(run=RunDir(unit.run.path.absolute())) for unit in units]
    check(cluster, root)
    if dry:
        return "\n".join(_written(batch, cluster) for batch in _example(units, cluster, root))
    if ignored := _overridden():
        log.warning("%s in this shell's environment does not apply; the profile %s does", ignored, cluster.name)
    with lock(root / ".mimbench" / "submit", wait=WAIT):
        queued, before = _queued_now(units, root), submission.unsent(root)
        wanted = [unit for unit in units if unit.run.path not in queued and unit.run.state() not in ("done", "running")]
        batches = _noted(wanted, cluster, root) if wanted else []
        _send_all([*before, *batches], cluster, fresh={batch.id for batch in batches})
    waited = (RunDir(root / path) for batch in before if batch.cluster == cluster.name for path in batch.runs.values())
    runs = dict.fromkeys([*(unit.run for unit in units), *waited])
    return [found for run in runs if (found := submission.read(run)) is not None]


def waiting(cluster: Cluster, root: Path) -> int:
    """Submit the runs recorded while SLURM did not answer; return their number.

    Raises:
        OSError: if it still does not answer.
    """
    root = root.absolute()
    if not submission.unsent(root):
        return 0
    with lock(root / ".mimbench" / "submit", wait=WAIT):
        batches = submission.unsent(root)
        _send_all(batches, cluster)
    return sum(len(batch.runs) for batch in batches if batch.cluster == cluster.name)


def must_answer() -> None:
    """Check that SLURM answers, before anything is written for it; repeat for some seconds.

    Raises:
        ValueError: if it is not installed here.
        OSError: if it does not answer.
    """
    for pause in (*BACK_OFF, None):
        try:
            slurm.listing()
            return
        except slurm.SilentError as error:
            if pause is None:
                raise slurm.SilentError(f"{error}. Nothing was submitted or written; try again later") from None
            log.warning("SLURM does not answer; trying again in %.0f s", pause)
            time.sleep(pause)


def check(cluster: Cluster, root: Path) -> None:
    """Check that this machine can submit to the cluster, and that its nodes see the runs.

    Raises:
        ValueError: naming the wrong key of the profile.
    """
    if cluster.kind != "slurm":
        raise ValueError(
            f"cluster {cluster.name} is this machine, which accepts no jobs; name a cluster of `mimbench cluster show`"
        )
    shared = Path(cluster.shared_root).expanduser().resolve() if cluster.shared_root else None
    if shared is not None and not root.resolve().is_relative_to(shared):
        raise ValueError(
            f"the runs are in {root.resolve()}, which the nodes of cluster {cluster.name} do not share; "
            f"set MIMBENCH_RUNS to a directory under shared_root={cluster.shared_root}"
        )


def _noted(units: Sequence[Unit], cluster: Cluster, root: Path) -> list[Batch]:
    """Return batches of these units, recorded as about to be submitted."""
    try:
        size = slurm.max_array(cluster)
    except slurm.SilentError:
        size = SMALL_ARRAY
    size = min(size, cluster.max_submit or size)
    batches = arrays.plan(units, root, size, cluster.name, snapshot(root))
    for batch in batches:
        batch.note()
    return batches


def _queued_now(units: Sequence[Unit], root: Path) -> set[Path]:
    """Return the runs of `units` that have a queued or running job, by SLURM's current answer."""
    found = {unit.run.path: submission.read(unit.run) for unit in units}
    known = {path: one for path, one in found.items() if one is not None}
    if not known:
        return set()
    try:
        states = slurm.listing(root).states
    except slurm.SilentError:
        return set(known)  # SLURM's state is unknown; asked again later
    return {path for path, one in known.items() if one.job is None or one.job in states}


# ---------------------------------------------------------------------------------------------------------- submitting


def _executor(batch: Batch, cluster: Cluster, dependency: str | None) -> Executor:
    from mimbench.jobs.slurm.sbatch import Executor  # imports submitit

    return Executor(batch, cluster, dependency)


def _overridden() -> str:
    from mimbench.jobs.slurm.sbatch import overridden

    return ", ".join(overridden())


def _send_all(batches: Iterable[Batch], cluster: Cluster, fresh: Container[str] = ()) -> None:
    """Submit the batches in order of their needs. SLURM cannot know the `fresh` ones yet.

    An array beyond the site's limit on jobs in the queue is halved; what SLURM does not take then waits on disk.
    """
    left, refused = [batch for batch in batches if batch.cluster == cluster.name], None
    while left:
        batch = left.pop(0)
        try:
            _send(batch, cluster, batch.id in fresh)
        except slurm.UnreachableError as error:
            new = [each for each in (batch, *left) if each.id in fresh]
            for each in new:
                each.withdraw()
            runs = sum(len(each.runs) for each in new)
            raise slurm.UnreachableError(f"{error}. {runs} runs were not submitted; submit them again later") from None
        except slurm.SilentError as error:
            runs = sum(len(each.runs) for each in (batch, *left))
            raise slurm.SilentError(
                f"{error}. {runs} runs are recorded; the next `mimbench submit` or `mimbench watch` submits them"
            ) from None
        except slurm.LimitError as error:
            if len(batch.runs) > 1:
                left = [*submission.halves(batch), *left]
                continue
            runs = sum(len(each.runs) for each in (batch, *left))
            level = logging.WARNING if fresh else logging.DEBUG  # `watch` tries again every minute
            log.log(level, "%s. %d runs wait; `mimbench watch` or the next `mimbench submit` submits them", error, runs)
            break
        except ValueError as error:
            refused = refused or error
            left = _withdraw(batch, left)
    if refused is not None:
        raise refused


def _withdraw(refused: Batch, left: list[Batch]) -> list[Batch]:
    """Forget a batch and all batches that need it; return the others."""
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
    """Submit one batch, unless SLURM already has it; repeat while SLURM does not answer."""
    reached = not fresh
    for pause in (*BACK_OFF, None):
        try:
            job = _accepted_before(batch) if reached else None
            batch.accepted(job or _executor(batch, cluster, _dependency(batch)).send())
            return
        except slurm.SilentError as error:
            reached = reached or error.reached
            if pause is None:
                if reached:  # perhaps at an earlier attempt: the job may be in the queue
                    raise slurm.SilentError(*error.args) from None
                raise
            log.warning("SLURM does not answer; trying again in %.0f s", pause)
            time.sleep(pause)


def _accepted_before(batch: Batch) -> str | None:
    """Return the job id if the queue has the batch: sbatch may have been interrupted after SLURM accepted the job."""
    names = slurm.listing(batch.root).names
    jobs = [job for job, name in names.items() if name == batch.job_name]
    return jobs[0].partition("_")[0] if jobs else None


def _dependency(batch: Batch) -> str | None:
    """Return sbatch's --dependency: the jobs of the needed runs that are not done."""
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
        raise slurm.SilentError(f"the run it needs, {need.path}, is not submitted yet")
    return found


def _example(units: Sequence[Unit], cluster: Cluster, root: Path) -> list[Batch]:
    """Return the batches that would be submitted now. A batch has the same name each time it is shown."""
    batches = arrays.plan(units, root, cluster.max_array or 1001, cluster.name, snapshot(root))
    names = (hashlib.sha256("".join(batch.runs.values()).encode()).hexdigest()[:8] for batch in batches)
    return [replace(batch, id=f"by-hand-{name}") for batch, name in zip(batches, names, strict=True)]


def _written(batch: Batch, cluster: Cluster) -> str:
    """Return the sbatch file, complete except for the ids of jobs to wait for."""
    batch.folder.mkdir(parents=True, exist_ok=True)  # SLURM before 23.02 silently writes no output without it
    needs = sorted({path for paths in batch.needs.values() for path in paths})
    jobs = "afterok:" + ":".join(f"JOB_OF_{path.rpartition('/')[2]}" for path in needs) if needs else None
    return _executor(batch, cluster, jobs).text()


# ------------------------------------------------------------------------------------------------------------ control


def cancel(runs: Iterable[RunDir], cluster: Cluster) -> list[RunDir]:
    """Cancel the jobs of these runs and forget their submissions; return the runs that had a job.

    Raises:
        OSError: if SLURM does not answer; then nothing changes.
    """
    found = [(run, one) for run in runs if (one := submission.read(run)) is not None and one.cluster == cluster.name]
    slurm.cancel({one.job for _, one in found if one.job})
    for run, one in found:
        if one.job is None:
            _leave(run, one)
        submission.clear(run)
    return [run for run, _ in found]


def _leave(run: RunDir, found: Submission) -> None:
    """Remove a run from a batch that is not submitted yet."""
    root = run.path.absolute().parents[1]
    batch = submission.read_batch(root, found.batch)
    runs = {index: path for index, path in batch.runs.items() if index != found.index}
    if runs:
        replace(batch, runs=runs).write()
    else:
        batch.withdraw()


def requeue(runs: Sequence[RunDir], cluster: Cluster, root: Path | None = None) -> None:
    """Start runs again: a running job is requeued, a held one released, an ended one is submitted anew.

    In all cases the run resumes from its newest checkpoint, after the runs it needs.

    Raises:
        ValueError: with SLURM's message, if it refuses; also if a run was never submitted to this cluster.
        OSError: if SLURM does not answer.
    """
    top = root.absolute() if root else None
    seen, units = slurm.listing(top), []
    for run in (RunDir(run.path.absolute()) for run in runs):
        found = submission.read(run)
        if found is None or found.cluster != cluster.name:
            raise ValueError(f"{run.path} has no job on cluster {cluster.name}; submit it with `mimbench submit`")
        job = str(found.job)
        if seen.states.get(job) == "RUNNING":
            slurm.requeue(job)
            continue
        if seen.reasons.get(job) == slurm.NEVER:
            slurm.cancel([job])
        elif seen.states.get(job) == "COMPLETING":
            raise ValueError(f"job {job} of {run.path} is ending; try again in a minute")
        elif job in seen.states:
            if seen.reasons.get(job, "").startswith(slurm.HELD):
                slurm.let_go(job)
            continue
        batch = submission.read_batch(top or run.path.parents[1], found.batch)
        units.append(Unit(run, batch.shape, tuple(missing(run)), batch.name))
    if units:
        submit(units, cluster, units[0].run.path.parents[1])
