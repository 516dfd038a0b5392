"""Handing runs to a real SLURM: arrays, dependencies, two shells at once, what SLURM refuses, and no SLURM at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm import schedulers, submission
from mimbench.jobs.slurm.cluster import Cluster as Profile
from mimbench.jobs.slurm.doctor import examine, proposal, rehearse
from mimbench.jobs.slurm.leftovers import findings
from mimbench.jobs.slurm.schedulers import Unit
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import Site, in_another_shell

pytestmark = pytest.mark.xdist_group("slurm")

SUBMIT = """
import sys
from pathlib import Path
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm.cluster import load
from mimbench.jobs.slurm.schedulers import Unit, submit
root, *names = sys.argv[1:]
profile = load("tiny")
sent = submit([Unit(RunDir(Path(root) / name), profile.shape(), (), "tiny") for name in names], profile, Path(root))
print(*[each.job for each in sent])
"""


@pytest.mark.slow
def test_array_dependency_bad_run_drained_nodes_and_two_submitters(site: Site, cluster: Cluster) -> None:
    """Three pretrainings, one without its data, and an evaluation of each: submitted twice at once, run once."""
    good = [site.pretrain(f"seed={seed}", "epochs=2", "warmup_epochs=1") for seed in (1, 2)]
    bad = site.pretrain("seed=3", "epochs=2", "warmup_epochs=1", f"data={_vanishing(site)}")
    knn = [_knn(site, run) for run in (*good, bad)]
    cluster.ask("scontrol", "update", "NodeName=n[1-2]", "State=DRAIN", "Reason=test")
    runs = [*good, bad]
    names = [str(run.path.relative_to(site.root)) for run in runs]
    shells = [in_another_shell(SUBMIT, site.root, *names) for _ in range(2)]
    said = [shell.communicate(timeout=120)[0].split() for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0]
    assert said[0] == said[1], "both see the same jobs"
    assert len({job.partition("_")[0] for job in said[0]}) == 1, "one array"
    assert len(cluster.ask("squeue", "-h", "-r").splitlines()) == 3, "each run once"
    wanted = site.profile.shape()
    units = [Unit(run, wanted, (need,), "knn") for run, need in zip(knn, runs, strict=True)]
    schedulers.submit(units, site.profile, site.root)
    assert {site.status(run) for run in (*runs, *knn)} == {"queued"}
    array = said[0][0].partition("_")[0]
    assert f"aftercorr:{array}" in cluster.ask("squeue", "-h", "-r", "-o", "%E")
    cluster.ask("scontrol", "update", "NodeName=n[1-2]", "State=RESUME")
    for run in good:
        site.wait(run, "done")
    site.wait(bad, "failed")
    site.wait(knn[2], "blocked")
    assert "holds no images" in bad.attempts()[-1]["why"]
    assert len(bad.attempts()) == 1, "an error is not tried again"
    for run in knn[:2]:
        site.wait(run, "done")
    wait_for(lambda: cluster.ask("squeue", "-h") == "", 60, "an empty queue: nothing waits for ever")
    assert all(_output(run) for run in runs)


def _vanishing(site: Site) -> Path:
    """A data set that is there now and not when the run starts."""
    folder = site.root.parent / "gone soon"
    (folder / "train" / "a").mkdir(parents=True)
    return folder


def _knn(site: Site, run: RunDir) -> RunDir:
    """A k-NN evaluation of a run that is not done: by hand, so that its need may be any run."""
    from mimbench.engine.run.config import identity, to_text
    from mimbench.jobs.runs.store import resolve

    recipe, config = resolve("cls/knn_handwritten", ("neighbours=10,20",), run.encoder)
    about = run.read_about()
    digest = identity(config, "cls", f"run:{about['identity']}")
    return RunDir.create(
        site.root / "cls" / f"knn_handwritten-{digest}",
        to_text(config),
        {
            "recipe": recipe.name,
            "stage": "cls",
            "identity": digest,
            "config": type(config).__name__,
            "checkpoint": {"path": str(run.encoder), "hash": None, "run": about["identity"]},
            "needs": [str(run.path.relative_to(site.root))],
        },
    )


def _output(run: RunDir) -> str:
    return "".join(file.read_text() for file in submission.outputs(run).values())


def _new(site: Site, count: int, start: int = 0) -> list[RunDir]:
    """Run directories that are only submitted, never run."""
    return [site.pretrain(f"seed={start + number}") for number in range(count)]


@pytest.fixture
def held(site: Site) -> Site:
    """A site whose jobs wait until they are cancelled."""
    site.profile = replace(site.profile, sbatch=("--hold",))
    return site


def test_arrays_are_split_at_the_sites_size(held: Site, cluster: Cluster) -> None:
    runs = _new(held, 23)  # MaxArraySize=20 here
    held.submit(*runs)
    found = [submission.read(run) for run in runs]
    arrays = {each.array for each in found if each}
    jobs = [each.job for each in found if each]
    assert len(arrays) == 2
    assert len(set(jobs)) == 23
    listed = cluster.ask("squeue", "-h", "-r", "-o", "%i").split()
    assert set(jobs) <= set(listed)
    assert schedulers.cancel(runs, held.profile) == runs
    assert not set(jobs) & set(cluster.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").split())
    assert {held.status(run) for run in runs} == {"new"}


def test_a_job_that_vanishes_is_lost_and_handed_in_again(held: Site, cluster: Cluster) -> None:
    [run] = _new(held, 1, 50)
    held.submit(run)
    first = submission.read(run)
    assert first is not None
    held.submit(run)
    assert submission.read(run) == first, "what is queued is not submitted again"
    cluster.ask("scancel", str(first.job))
    held.wait(run, "lost", 30)
    held.submit(run)
    second = submission.read(run)
    assert second is not None
    assert second.job != first.job
    assert held.status(run) == "queued"
    schedulers.cancel([run], held.profile)


def test_a_shell_that_dies_after_sbatch_does_not_submit_twice(
    held: Site, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run] = _new(held, 1, 60)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(submission.Batch, "accepted", die)  # sbatch has returned, its answer is not written down
        with pytest.raises(KeyboardInterrupt):
            held.submit(run)
    noted = submission.read(run)
    assert noted is not None
    assert noted.job is None
    held.submit(run)
    assert len([name for name in cluster.ask("squeue", "-h", "-o", "%j").split() if noted.batch in name]) == 1
    found = submission.read(run)
    assert found is not None
    assert found.job is not None
    schedulers.cancel([run], held.profile)


@pytest.mark.parametrize(
    ("change", "words", "key"),
    [
        ({"partition": "gpuu"}, "invalid partition", "partition=gpuu"),
        ({"constraint": "a100"}, "Invalid feature", "constraint=a100"),
        ({"minutes": 600}, "time limit", "minutes=600"),
        ({"memory_gb": 900.0}, "Memory|memory|node configuration", "profile"),
        ({"gpus_per_node": 4, "gpu_request": "gres", "gpu_type": "a100"}, "generic resource|node configuration", "gpu"),
        ({"sbatch": ("--no-such-thing",)}, "unrecognized option", "sbatch"),
    ],
)
def test_what_slurm_refuses(site: Site, change: dict[str, object], words: str, key: str) -> None:
    site.profile = replace(site.profile, **change)  # type: ignore[arg-type]
    [run] = _new(site, 1, 70)
    with pytest.raises(ValueError, match=words) as error:
        site.submit(run)
    assert key in str(error.value)
    assert "\n" not in str(error.value)
    assert submission.read(run) is None, "what is refused is not noted"
    assert not submission.unsent(site.root)


def test_runs_where_the_nodes_cannot_see_them(site: Site, tmp_path: Path) -> None:
    site.profile = replace(site.profile, shared_root=str(tmp_path / "shared"))
    with pytest.raises(ValueError, match="do not share; set MIMBENCH_RUNS to a directory under shared_root="):
        site.submit(*_new(site, 1, 80))


def test_what_dry_run_prints_can_be_handed_in(site: Site, cluster: Cluster, tmp_path: Path) -> None:
    runs = _new(site, 2, 90)
    units = [Unit(run, site.profile.shape(), (), "tiny") for run in runs]
    text = schedulers.submit(units, replace(site.profile, sbatch=("--hold",)), site.root, dry=True)
    assert isinstance(text, str)
    assert submission.read(runs[0]) is None
    file = tmp_path / "job.sh"
    file.write_text(text)
    done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
    assert re.fullmatch(r"Submitted batch job \d+\n", done.stdout), done.stderr
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert '-m mimbench run "$run"' in text
    cluster.ask("scancel", done.stdout.split()[-1])


def test_a_full_disk(held: Site, tmp_path: Path) -> None:
    disk = tmp_path / "small disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        held.root = disk / "runs"
        [run] = _new(held, 1, 300)
        with pytest.raises(OSError, match="No space left on device") as error:
            held.submit(run)
        assert str(disk) in str(error.value), "it says where"
        assert held.status(run) in ("new", "queued"), "not handed in, or noted"
        assert not list(disk.glob("runs/.mimbench/code/*/snapshot.json")), "half of the code is not used"
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        held.submit(run)
        assert held.status(run) == "queued"
        schedulers.cancel([run], held.profile)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_doctor_rehearses_a_preemption(site: Site, cluster: Cluster) -> None:
    for check in examine(site.profile, site.root):
        assert check.verdict != "problem", check
    said: list[str] = []
    checks = list(rehearse(site.profile, site.root, said.append))
    assert [check.verdict for check in checks] == ["ok"] * len(checks), checks
    assert {check.what for check in checks} == {"nodes", "CPUs", "gloo", "clock", "export", "container", "requeue"}
    from mimbench.jobs.slurm.cluster import load

    learned = load("tiny")
    assert learned.max_array == 20
    assert learned.slurm is not None
    assert learned.probed is not None
    assert not learned.has_sacct
    assert cluster.ask("squeue", "-h", "-t", "PENDING") == ""


def test_doctor_says_that_a_node_cannot_run_the_container(site: Site, cluster: Cluster) -> None:
    """The probe's shell finds no Apptainer and ends before srun; nothing is written into the profile."""
    if shutil.which("apptainer"):
        pytest.skip("there is Apptainer here")
    [check] = rehearse(replace(site.profile, container="/images/a.sif"), site.root)
    assert (check.what, check.verdict) == ("container", "problem")
    assert "container=/images/a.sif, but Apptainer is not on " in check.found
    assert check.remedy == "`mimbench cluster add tiny container=none`"


def test_check_names_the_key(site: Site) -> None:
    wrong = replace(site.profile, partition="gpuu", max_array=5000, has_sacct=True)
    problems = {check.what: check for check in examine(wrong, site.root) if check.verdict == "problem"}
    assert {"a job", "partition", "arrays", "sacct"} <= problems.keys()
    assert "partition=gpuu" in problems["a job"].found
    assert "max_array=20" in problems["arrays"].remedy


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"partition": "gpuu"}, "partition=low"),
        ({"gpus_per_node": 8, "gpu_type": "a100"}, "gpu_type=none gpus_per_node=2"),
        ({"memory_gb": 900.0}, "memory_gb=3.90625"),
        ({"minutes": 600, "cpus_per_task": 12}, "cpus_per_task=2 minutes=60 max_minutes=60"),
    ],
)
def test_settings_that_slurm_accepts_are_proposed(site: Site, change: dict[str, object], remedy: str) -> None:
    wrong = replace(site.profile, **change)  # type: ignore[arg-type]
    [check] = [check for check in examine(wrong, site.root) if check.what == "a job"]
    assert (check.verdict, check.remedy) == ("problem", f"`mimbench cluster add tiny {remedy}`")
    better = proposal(wrong)
    assert better is not None
    assert proposal(better) == better, "it is accepted"


def test_jobs_of_a_runs_root_that_is_gone_are_listed(held: Site, cluster: Cluster) -> None:
    runs = _new(held, 2, 85)
    held.submit(*runs)
    assert not list(findings())
    job = str(submission.read(runs[0]).array)  # type: ignore[union-attr]
    shutil.rmtree(held.root)
    [finding] = findings()
    assert str(held.root) in finding.found
    assert finding.remedy.startswith(f"`scancel {job}`")
    cluster.ask("scancel", job)
    assert not list(findings())


def test_a_job_whose_need_is_cancelled_is_named_and_cleared(held: Site, cluster: Cluster) -> None:
    """Where the site keeps it waiting for ever; held jobs show another reason, so only the first is held."""
    first, second = _new(held, 2, 87)
    held.submit(first)
    held.profile = replace(held.profile, sbatch=("--kill-on-invalid-dep=no",))
    held.submit(second, needs=(first,))
    jobs = [str(submission.read(run).job) for run in (first, second)]  # type: ignore[union-attr]
    cluster.ask("scancel", jobs[0])
    held.wait(second, "blocked", 30)
    assert f"job {jobs[1]} waits for a job that failed" in schedulers.remark(
        second, slurm.queue(held.profile, held.root)
    )
    held.profile = replace(held.profile, sbatch=("--hold",))
    schedulers.requeue([first, second], held.profile, held.root)
    assert [held.status(run) for run in (first, second)] == ["queued", "queued"]
    assert jobs[1] not in cluster.ask("squeue", "-h", "-o", "%i").split(), "the old job is gone"
    schedulers.cancel([first, second], held.profile)


def test_the_queue_is_asked_once_in_ten_seconds(site: Site, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "EVERY", 10.0)
    asked = []
    ask = slurm.ask
    monkeypatch.setattr(slurm, "ask", lambda *command: (asked.append(command), ask(*command))[1])
    for _ in range(50):
        assert slurm.queue(profile, site.root).answered
    assert [command[0] for command in asked] == ["squeue"]


def test_no_slurm_at_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(ValueError, match=r"SLURM is not installed here .*--cluster local"):
        site.submit(*_new(site, 1, 95))
    assert os.environ["SLURM_CONF"]
