"""Which runs share an array, in which order, and what waits for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.slurm import commands, schedulers
from mimbench.jobs.slurm.arrays import plan
from mimbench.jobs.slurm.cluster import Cluster, Shape, add
from mimbench.jobs.slurm.commands import NEVER, Queue
from mimbench.jobs.slurm.schedulers import Unit, remark, status_of
from mimbench.jobs.slurm.submission import Batch, halves, read, unsent
from tests.jobs.mine import mimbench

LIMIT = """sbatch: error: AssocMaxSubmitJobLimit
sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or \
time limits)"""
BIG, SMALL = Shape(gpus=4, minutes=600), Shape(gpus=1, minutes=60)


def _run(root: Path, name: str, needs: tuple[str, ...] = ()) -> RunDir:
    about = {"recipe": f"cls/{name}", "stage": "cls", "identity": name, "needs": [f"cls/{need}" for need in needs]}
    return RunDir.create(root / "cls" / name, "", about)


def _plan(root: Path, units: list[Unit], size: int = 1001) -> list[tuple[dict[int, str], Shape]]:
    batches = plan(units, root, size)
    return [({index: Path(run).name for index, run in batch.runs.items()}, batch.shape) for batch in batches]


def test_one_array_for_each_shape_split_at_the_sites_size(tmp_path: Path) -> None:
    runs = [_run(tmp_path, f"r{number}") for number in range(5)]
    units = [Unit(run, SMALL if number % 2 else BIG) for number, run in enumerate(runs)]
    assert _plan(tmp_path, units) == [({0: "r0", 1: "r2", 2: "r4"}, BIG), ({0: "r1", 1: "r3"}, SMALL)]
    assert [len(runs) for runs, _ in _plan(tmp_path, units, size=2)] == [2, 2, 1]


def test_a_sweep_of_pretrainings_each_with_its_evaluations(tmp_path: Path) -> None:
    pretrains = [_run(tmp_path, f"p{number}") for number in range(3)]
    units = [Unit(run, BIG) for run in pretrains]
    for kind in ("finetune", "probe"):
        units += [Unit(_run(tmp_path, f"{kind}{n}"), SMALL, (pretrains[n],)) for n in (2, 0)]
    first, *others = _plan(tmp_path, units[::-1])
    assert first[0] == {0: "p2", 1: "p1", 2: "p0"}
    assert sorted(tuple(sorted(runs.items())) for runs, _ in others) == [
        ((0, "finetune2"), (2, "finetune0")),
        ((0, "probe2"), (2, "probe0")),
    ], "each has the index of what it needs, so that it can start when that alone is done"


def test_evaluations_of_one_pretraining_share_an_array(tmp_path: Path) -> None:
    pretrain = _run(tmp_path, "p")
    units = [Unit(pretrain, BIG), *(Unit(_run(tmp_path, name), SMALL, (pretrain,)) for name in "abc")]
    assert [runs for runs, _ in _plan(tmp_path, units)] == [{0: "p"}, {0: "a", 1: "b", 2: "c"}]


def test_a_circle(tmp_path: Path) -> None:
    a, b = _run(tmp_path, "a"), _run(tmp_path, "b")
    with pytest.raises(ValueError, match="need each other in a circle"):
        plan([Unit(a, SMALL, (b,)), Unit(b, SMALL, (a,))], tmp_path, 10)


def _submitted(root: Path, job: str | None, *runs: RunDir, needs: tuple[str, ...] = ()) -> Batch:
    names = {index: str(run.path.relative_to(root)) for index, run in enumerate(runs)}
    batch = Batch(root, "site", "x", names, SMALL, needs=dict.fromkeys(names, needs))
    batch.note()
    return batch.accepted(job) if job else batch


def test_what_is_noted_is_read_back(tmp_path: Path) -> None:
    runs = [_run(tmp_path, name) for name in "abc"]
    assert read(runs[0]) is None
    batch = _submitted(tmp_path, None, *runs)
    assert unsent(tmp_path) == [batch]
    assert status_of(runs[0], {}) == "queued"
    batch.accepted("12")
    assert unsent(tmp_path) == []
    found = [read(run) for run in runs]
    assert [(one.job, one.array, one.index) for one in found if one] == [
        ("12_0", "12", 0),
        ("12_1", "12", 1),
        ("12_2", "12", 2),
    ]
    _submitted(tmp_path, "13", runs[1])
    again = read(runs[1])
    assert again is not None
    assert (again.job, again.array) == ("13", None), "the latest counts"


def test_statuses(tmp_path: Path) -> None:
    run, after = _run(tmp_path, "a"), _run(tmp_path, "b", needs=("a",))
    _submitted(tmp_path, "12", run)
    later = 1e11

    def status(which: RunDir, jobs: dict[str, str], asked: float = later, answered: bool = True) -> str:
        return status_of(which, Queue(jobs, {}, asked, answered))

    assert status(run, {"12": "PENDING"}) == "queued"
    assert status(run, {"12": "RUNNING"}) == "running"
    assert status(run, {}) == "lost"
    assert status(run, {}, asked=0.0) == "queued", "the answer is older than the question"
    assert status(run, {}, answered=False) == "queued", "SLURM is silent"
    number = run.begin_attempt(job="12", step=0)
    assert status(run, {"12": "RUNNING"}) == "running"
    assert status(run, {"12": "PENDING"}) == "queued", "put back into the queue"
    assert status(run, {}) == "lost", "its process would have said that it ended"
    run.end_attempt(number, "failed", "no data")
    assert status(run, {}) == "failed"
    assert status(run, {"12": "COMPLETING"}) == "failed"
    assert status(run, {}, asked=0.0) == "failed"
    assert status(after, {}) == "blocked"
    _submitted(tmp_path, "13", after, needs=("cls/a",))
    assert status(after, {"13": "PENDING"}) == "queued"
    assert status(after, {}) == "blocked"
    _submitted(tmp_path, "14", run)
    assert status(run, {}, asked=0.0) == "queued", "handed in again since it failed"
    assert status(run, {"14": "PENDING"}) == "queued"


def test_an_evaluation_on_the_way_needs_no_more_than_the_encoder_of_its_epoch(tmp_path: Path) -> None:
    about = {"recipe": "pretrain/x", "stage": "pretrain", "identity": "0a1b"}
    pretrain = RunDir.create(tmp_path / "pretrain" / "x-0a1b", "", about)
    pretrain.end_attempt(pretrain.begin_attempt(), "failed", "the disk was full")
    encoder = pretrain.encoder_at(100)
    checkpoint = {"path": str(encoder), "hash": None, "run": "0a1b@100"}
    about = {
        "recipe": "cls/knn",
        "stage": "cls",
        "identity": "c",
        "needs": ["pretrain/x-0a1b"],
        "checkpoint": checkpoint,
    }
    knn = RunDir.create(tmp_path / "cls" / "knn-c", "", about)
    assert status_of(knn, {}) == "blocked"
    encoder.parent.mkdir()
    encoder.touch()
    assert status_of(knn, {}) == "new"


def test_dependencies(tmp_path: Path) -> None:
    a, b = _run(tmp_path, "a"), _run(tmp_path, "b")
    _submitted(tmp_path, "12", a, b)
    dependency = schedulers._dependency
    both = Batch(tmp_path, "site", "x", {0: "cls/c", 1: "cls/d"}, SMALL, needs={0: ("cls/a",), 1: ("cls/b",)})
    assert dependency(both) == "aftercorr:12"
    one = Batch(tmp_path, "site", "x", {0: "cls/c", 1: "cls/d"}, SMALL, needs={0: ("cls/b",), 1: ("cls/b",)})
    assert dependency(one) == "afterok:12_1"
    assert (
        dependency(Batch(tmp_path, "site", "x", {0: "cls/c"}, SMALL, needs={0: ("cls/a", "cls/b")}))
        == "afterok:12_0:12_1"
    )
    assert dependency(Batch(tmp_path, "site", "x", {0: "cls/c"}, SMALL, needs={0: ()})) is None


def test_the_local_cluster_is_not_submitted_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is this machine"):
        schedulers.submit([], Cluster(name="local", kind="local"), tmp_path)


def test_why_a_job_waits_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path, "a")
    _submitted(tmp_path, "12", run)

    def seen(state: str, reason: str = "", ran: int = 0) -> Queue:
        return Queue({"12": state}, {}, 1e11, True, {"12": reason} if reason else {}, {"12": ran})

    never = seen("PENDING", NEVER)
    assert status_of(run, never) == "blocked"
    assert "`mimbench retry`" in remark(run, never)
    held = seen("PENDING", "job requeued in held state")
    assert status_of(run, held) == "queued"
    assert "`mimbench retry` releases it" in remark(run, held)
    assert remark(run, seen("PENDING", "AssocMaxJobsLimit")) == "SLURM: AssocMaxJobsLimit"
    assert remark(run, seen("PENDING")) == ""
    number = run.begin_attempt(job="12", restart=1)
    run.amend_attempt(number, {"process_started": -1.0})  # its process is gone, and nobody has said how it ended
    monkeypatch.setattr(commands, "ask", lambda *command: "JobId=12 Requeue=1 Restarts=1 BatchFlag=1")
    hanging = seen("RUNNING", ran=3600)
    assert status_of(run, hanging) == "lost"
    gone = "job 12 still runs, but the run's processes are gone"
    assert remark(run, hanging) == f"{gone}; it is requeued within ten minutes, by `mimbench retry` now"
    assert status_of(run, seen("RUNNING", ran=60)) == "running", "it may be restarting"
    monkeypatch.setattr(commands, "ask", lambda *command: "JobId=12 Requeue=1 Restarts=2 BatchFlag=1")
    assert status_of(run, hanging) == "running", "a later start of the job copies data or imports"


def test_what_is_beyond_a_limit_on_jobs_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [_run(tmp_path, f"r{number}") for number in range(7)]
    room, sent = 4, list[dict[int, str]]()

    class Site:
        def __init__(self, batch: Batch, *_: object) -> None:
            self.batch = batch

        def send(self) -> str:
            if sum(map(len, sent)) + len(self.batch.runs) > room:
                raise commands.refusal(LIMIT)
            sent.append(self.batch.runs)
            return str(len(sent))

    monkeypatch.setattr(schedulers, "_executor", Site)
    monkeypatch.setattr(commands, "listing", lambda root=None: commands.Listing({}, {}, {}, {}))
    [batch] = plan([Unit(run, SMALL) for run in runs], tmp_path, 1001, "a100")
    batch.note()
    cluster = Cluster(name="a100")
    schedulers._send_all([batch], cluster, fresh={batch.id})
    assert [sorted(each) for each in sent] == [[0, 1, 2], [3]]
    left = unsent(tmp_path)
    assert sorted(index for each in left for index in each.runs) == [4, 5, 6]
    assert [found.job for run in runs if (found := read(run))] == ["1_0", "1_1", "1_2", "2", None, None, None]
    assert remark(runs[6], {}).startswith("waits here")
    room = 7
    assert schedulers.waiting(cluster, tmp_path) == 3
    assert sorted(index for each in sent for index in each) == list(range(7))
    assert unsent(tmp_path) == []


def test_a_shell_that_dies_while_it_halves_an_array_submits_nothing_twice(tmp_path: Path) -> None:
    [batch] = plan([Unit(_run(tmp_path, f"r{number}"), SMALL) for number in range(4)], tmp_path, 1001, "a100")
    batch.note()
    halves(batch)
    batch.write()  # as if the first half had not been written
    assert sorted(index for each in unsent(tmp_path) for index in each.runs) == [0, 1, 2, 3]


def test_retry_releases_a_job_that_slurm_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after "Duplicate jobid": a node refused to launch the job, and SLURM holds it until somebody acts."""
    run = _run(runs_root(), "a")
    said: list[str] = []
    add("site", [])
    _submitted(runs_root(), "12", run)

    def ask(*command: str) -> str:
        said.append(" ".join(command[:3]))
        return "12|PENDING|0:00|launch failed requeued held|a\n" if command[0] == "squeue" else ""

    monkeypatch.setattr(commands, "ask", ask)
    assert mimbench("retry", run.path.name).exit_code == 0
    assert said[-1] == "scontrol release 12"
