"""Submissions to a cluster, recorded on disk: they outlive the submitting shell and the scheduler's memory.

    <root>/.mimbench/jobs/<batch>/batch.json     one call of sbatch: its runs by array index, and its job id
                                  unsent         exists until sbatch has accepted it
                                  <job>_<rank>_log.out, <job>_submission.sh
    <run>/submission.json                        a link to the batch.json of its batch

A batch is recorded before sbatch is called, without a job id. So nothing is lost or submitted twice after a crash: the
batch's id is part of the job's name and can be found in the queue. One file holds the job id of a whole array, so that
it is recorded in one step.
"""

from __future__ import annotations

import getpass
import json
import os
import pwd
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm.cluster import Shape

LINK = "submission.json"
ATTEMPTS = 3  # starts without progress after which a run is given up


@dataclass(frozen=True)
class Batch:
    """One call of sbatch: a job, or an array of jobs of one shape."""

    root: Path
    cluster: str
    name: str
    runs: dict[int, str]  # array index -> run directory, relative to the root
    shape: Shape
    needs: dict[int, tuple[str, ...]] = field(default_factory=dict)  # array index -> runs that must be done before
    code: dict[str, Any] = field(default_factory=dict)  # description of the code, from jobs.slurm.snapshot
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    job: str | None = None
    submitted: float = field(default_factory=time.time)
    by: str = field(default_factory=lambda: f"{getpass.getuser()}@{socket.gethostname()}")

    @property
    def folder(self) -> Path:
        """Return the directory of its sbatch file and output."""
        return self.root / ".mimbench" / "jobs" / self.id

    @property
    def job_name(self) -> str:
        """Return the job name, unique in the queue."""
        return f"{self.name}.{self.id}"

    def job_of(self, index: int) -> str | None:
        """Return the job id of the run at `index`."""
        return self.job if self.job is None or len(self.runs) == 1 else f"{self.job}_{index}"

    def index_of(self, path: str) -> int:
        """Return the array index of the run at `path`, relative to the root.

        Raises:
            KeyError: if it is not in this batch.
        """
        return _indices(self)[path]

    def note(self) -> None:
        """Record the batch durably as about to be submitted, and link its runs to it."""
        self.write()
        (self.folder / "unsent").touch()
        for path in self.runs.values():
            _point(f"{self.root}/{path}/{LINK}", self.id)

    def write(self) -> None:
        """Write `batch.json`."""
        record = {key: value for key, value in asdict(self).items() if key != "root"}
        write_json(self.folder / "batch.json", {**record, "shape": self.shape._asdict()})

    def accepted(self, job: str) -> Batch:
        """Return the batch with its job id and the time, and record both."""
        batch = replace(self, job=job, submitted=time.time())
        batch.write()
        (self.folder / "unsent").unlink(missing_ok=True)
        return batch

    def withdraw(self) -> None:
        """Remove the record of the batch."""
        for path in self.runs.values():
            run = RunDir(self.root / path)
            if (found := read(run)) is not None and found.batch == self.id:
                clear(run)
        (self.folder / "unsent").unlink(missing_ok=True)


def _point(link: str, batch: str) -> None:
    """Link a run to its batch, with one system call for a new run, because there may be thousands."""
    target = f"../../.mimbench/jobs/{batch}/batch.json"
    try:
        os.symlink(target, link)  # noqa: PTH211
    except FileExistsError:
        temporary = Path(f"{link}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)


@dataclass(frozen=True)
class Submission:
    """The submission of a run to a cluster."""

    cluster: str
    job: str | None  # None: recorded, but not yet accepted by SLURM
    array: str | None
    submitted: float  # seconds since 1970
    by: str
    snapshot: str | None
    resources: dict[str, Any]
    batch: str
    index: int
    attempt_limit: int = ATTEMPTS


def read(run: RunDir) -> Submission | None:
    """Return the run's submission; None if it was never submitted or was cancelled.

    Raises:
        ValueError: if its files are damaged.
    """
    place = os.fspath(run.path)
    try:
        target = os.readlink(f"{place}/{LINK}")  # noqa: PTH115 (with a thousand runs, pathlib takes most of the time)
        folder, name = os.path.split(place)
        root, stage = os.path.split(folder)
        batch = _batch(f"{root}/.mimbench/jobs/{target.split('/')[-2]}/batch.json")
        index = batch.index_of(f"{stage}/{name}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{place}/{LINK} is damaged ({error}); remove it and submit the run again") from None
    job, array = batch.job_of(index), batch.job if len(batch.runs) > 1 else None
    snapshot, resources = batch.code.get("snapshot"), batch.shape._asdict()
    return Submission(batch.cluster, job, array, batch.submitted, batch.by, snapshot, resources, batch.id, index)


def clear(run: RunDir) -> None:
    """Forget that the run was submitted."""
    (run.path / LINK).unlink(missing_ok=True)


def read_batch(root: Path, name: str) -> Batch:
    """Return the batch called `name` under `root`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged.
    """
    return _batch(f"{root}/.mimbench/jobs/{name}/batch.json")


def _batch(file: str) -> Batch:
    about = os.stat(file)  # noqa: PTH116
    return _parsed(file, about.st_mtime_ns, about.st_ino)  # the time is too coarse on some file servers


@lru_cache(maxsize=1024)
def _parsed(name: str, modified: int, inode: int) -> Batch:
    """Return the parsed batch, read once for all runs of an array."""
    file = Path(name)
    values = json.loads(file.read_text(encoding="utf-8"))
    runs = {int(index): path for index, path in values.pop("runs").items()}
    needs = {int(index): tuple(paths) for index, paths in values.pop("needs").items()}
    return Batch(root=file.parents[3], runs=runs, needs=needs, shape=Shape(**values.pop("shape")), **values)


_known: dict[str, tuple[Batch, dict[str, int]]] = {}


def _indices(batch: Batch) -> dict[str, int]:
    """Return the array index by run, built once for each batch."""
    kept = _known.get(batch.id)
    if kept is None or kept[0] is not batch:
        kept = _known[batch.id] = batch, {path: index for index, path in batch.runs.items()}
    return kept[1]


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Return a batch that is not submitted yet as two, both recorded; each run keeps its index."""
    places = sorted(batch.runs)
    cut = len(places) // 2

    def part(indices: list[int], name: str) -> Batch:
        runs = {index: batch.runs[index] for index in indices}
        needs = {index: batch.needs[index] for index in indices if index in batch.needs}
        return replace(batch, id=name, runs=runs, needs=needs)

    second = part(places[cut:], secrets.token_hex(4))
    second.note()  # first, so that no run is without a record; `unsent` leaves out what another batch has taken over
    first = part(places[:cut], batch.id)
    first.write()
    return first, second


def owners(root: Path) -> set[int]:
    """Return the numbers of the users who submitted from `root`; those that this machine does not know are left out."""
    try:
        with os.scandir(root / ".mimbench" / "jobs") as folders:
            return {number for number in {folder.stat().st_uid for folder in folders} if _is_known(number)}
    except OSError:
        return set()


def _is_known(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def unsent(root: Path) -> list[Batch]:
    """Return the recorded batches that are not yet accepted, oldest first."""
    found = [read_batch(root, marker.parent.name) for marker in (root / ".mimbench" / "jobs").glob("*/unsent")]
    return sorted((batch for each in found if (batch := _of_it_alone(each)).runs), key=lambda batch: batch.submitted)


def _of_it_alone(batch: Batch) -> Batch:
    """Return the batch without the runs that are linked to another one: a shell died while it halved an array."""
    runs = {index: path for index, path in batch.runs.items() if _linked(f"{batch.root}/{path}") == batch.id}
    return batch if len(runs) == len(batch.runs) else replace(batch, runs=runs)


def _linked(place: str) -> str | None:
    try:
        return os.readlink(f"{place}/{LINK}").split("/")[-2]  # noqa: PTH115
    except (OSError, IndexError):
        return None


def outputs(run: RunDir) -> dict[int, Path]:
    """Return the output file of each rank of the run's latest job."""
    submission = read(run)
    if submission is None or submission.job is None:
        return {}
    return dict(_outputs(run.path.parents[1] / ".mimbench" / "jobs" / submission.batch, submission.job))


def _outputs(folder: Path, job: str) -> Iterator[tuple[int, Path]]:
    for file in folder.glob(f"{job}_*_log.out"):
        rank = file.name.removeprefix(f"{job}_").removesuffix("_log.out")
        if rank.isdigit():
            yield int(rank), file
