"""Six sites, each by its profile and the sbatch file it leads to, word for word; and data staged to a node's disk."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm import job as slurm_job
from mimbench.jobs.slurm import staging
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.node_shell import MARK, container, of_shell, probe_setup, read_report
from mimbench.jobs.slurm.proposals import candidates
from mimbench.jobs.slurm.sbatch import Executor, overridden
from mimbench.jobs.slurm.submission import Batch

GOLDEN = Path(__file__).parent / "golden" / "sites"
SITES = {
    "typed_gres": Cluster(
        partition="gpu", account="vision", gpu_request="gres", gpu_type="a100", gpus_per_node=4, memory_gb=60.0,
        setup=("module load cuda/12.4",), login_shell=True, python="/sw/env/bin/python",
    ),
    "memory_and_limits": Cluster(
        partition="long,short", qos="high", gpu_request="gpus-per-task", gpu_type="h100", cpus_per_task=16,
        memory_gb=96.0, memory_request="mem-per-gpu", max_minutes=2880, max_submit=20, reservation="course",
        exclude="node[03,07]", licenses="scratch:1", comment="project 12", mail_user="a@b.org", python="/sw/python",
    ),
    "cpu_only": Cluster(
        partition="cpu", gpu_request="none", gpus_per_node=0, cpus_per_task=4, memory_gb=8.0,
        memory_request="mem-per-cpu", exclusive=True, python="/sw/python",
    ),
    "no_scontrol": Cluster(
        partition="gpu", can_requeue=False, signal="USR1", signal_seconds=300, export="NONE", python="/sw/python",
        cleanup=("rm -rf /tmp/cache",), scratch="$SLURM_TMPDIR", stage=("imagenet=/data/imagenet shards",),
    ),
    "apptainer": Cluster(
        partition="gpu", container="/images/mim bench.sif", container_binds=("/data",), scratch="/local/$USER",
        stage=("ade=/data/ade20k",), python=None,
    ),
    "pyxis": Cluster(
        partition="batch", account="vision", container="registry/team/mimbench:1", container_kind="pyxis",
        container_binds=("/lustre/data",), srun_inherits_cpus=True,
    ),
}  # fmt: skip


def _text(cluster: Cluster) -> str:
    batch = Batch(
        Path("/lustre/runs"), "site", "vit", {0: "cls/a", 1: "cls/b"}, cluster.shape(gpus=2), id="0011aabb",
        code={"snapshot": "/lustre/runs/.mimbench/code/ab"},
    )  # fmt: skip
    return Executor(batch, cluster, None).text()


@pytest.mark.parametrize("name", SITES)
def test_the_files_of_six_sites(name: str) -> None:
    text = _text(SITES[name])
    assert text == (GOLDEN / f"{name}.sh").read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stage": ("imagenet",), "scratch": "/tmp"}, "stage='imagenet' is not NAME=DIRECTORY"),
        ({"stage": ("a=/b",)}, "stage needs scratch"),
        ({"gpu_request": "none", "memory_request": "mem-per-gpu"}, "memory_request=mem-per-gpu needs GPUs"),
        ({"max_submit": 0}, "max_submit=0 must be at least 1"),
    ],
)
def test_contradictions_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cluster(**settings)  # type: ignore[arg-type]


def test_options_of_this_shell_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SBATCH_CLUSTERS", "a")
    assert overridden() == ["SBATCH_PARTITION=debug"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data set of two files."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a.tar").write_bytes(b"abc")
    (tmp_path / "data" / "classes.txt").write_text("cat")
    return tmp_path / "data"


def test_data_is_staged_once_and_again_if_it_changed(source: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    arguments = [str(scratch), f"toy={source}"]
    assert staging.main(arguments) == 0
    copied = scratch / "toy" / "train" / "a.tar"
    assert copied.read_bytes() == b"abc"
    before = copied.stat().st_ino
    assert staging.main(arguments) == 0
    assert copied.stat().st_ino == before, "a complete copy is used as it is"
    copied.unlink()
    (source / "train" / "b.tar").write_bytes(b"defg")
    (scratch / "toy.complete").unlink()  # as after a kill
    assert staging.main(arguments) == 0
    assert sorted(file.name for file in copied.parent.iterdir()) == ["a.tar", "b.tar"]


def test_what_cannot_be_staged_is_read_where_it_is(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scratch").write_text("not a directory")
    assert staging.main([str(tmp_path / "scratch"), f"toy={source}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"toy is not staged, the run reads {source}" in said


@pytest.mark.parametrize(("state", "code"), [("RUNNING", 0), ("COMPLETING", 1), ("", 1)])
def test_in_a_container_the_shell_requeues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    monkeypatch.setattr(slurm, "ask", lambda *command: pytest.fail(f"there is no SLURM here: {command}"))
    run = RunDir.create(tmp_path / "cls" / "a", "", {"recipe": "cls/a", "stage": "cls", "identity": "a"})
    run.end_attempt(run.begin_attempt(step=5, job="12"), "interrupted")
    assert slurm_job.main([str(run.path), "12", "143", state]) == code


def test_what_the_shell_of_a_node_lacks_is_written_into_the_profile(tmp_path: Path) -> None:
    """A node without scontrol, whose login shells alone know `module`; asked by the real shell."""
    (tmp_path / ".bash_profile").write_text("module() { :; }\n")
    profile = Cluster(name="site", setup=("module load cuda",), scratch="$LOCAL_DISK")
    seen = _seen(profile, tmp_path, {"HOME": str(tmp_path), "LOCAL_DISK": str(tmp_path), MARK: "seen"})
    learned, found = of_shell(profile, seen)
    assert (learned.can_requeue, learned.login_shell) == (False, True)
    verdicts = [(one.what, one.verdict) for one in found]
    assert verdicts[:3] == [("scontrol", "note"), ("modules", "note"), ("scratch", "ok")]
    assert verdicts[3:] == [("export", "ok"), ("container", "ok")]
    assert found[2].found.startswith(str(tmp_path))
    assert found[4].found.startswith("not tried: neither Apptainer nor Enroot with Pyxis is on ")
    learned, found = of_shell(profile, seen | {"scratch": "", "login_module": "", "scontrol": "/usr/bin/scontrol"})
    assert learned == profile
    assert [(one.what, one.verdict) for one in found][:2] == [("modules", "problem"), ("scratch", "problem")]


def _seen(profile: Cluster, place: Path, environment: dict[str, str]) -> dict[str, str]:
    """What a shell with nothing but bash, grep and uname on its path reports."""
    (place / "bin").mkdir(exist_ok=True)
    for name in ("bash", "grep", "uname"):
        if not (place / "bin" / name).exists():
            (place / "bin" / name).symlink_to(str(shutil.which(name)))
    lines = "\n".join(probe_setup(profile, place / "shell"))
    known = {"PATH": str(place / "bin"), "HOME": str(place), **environment}
    done = subprocess.run(["/bin/bash", "-c", lines], env=known, capture_output=True, text=True, check=False)
    assert done.returncode == (127 if "is not found on" in done.stderr else 0), done.stderr
    return read_report(place / "shell")


def test_whether_jobs_get_the_variables_of_the_submitting_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they do not, the profile says so and sets those that tell where the data are."""
    monkeypatch.setenv("MIMBENCH_DATA_BIRDS", "/data/small birds")
    monkeypatch.setenv("MIMBENCH_HOME", str(tmp_path))
    profile = Cluster(name="site", can_requeue=False)
    learned, found = of_shell(profile, _seen(profile, tmp_path, {}))
    assert learned.export == "NONE"
    assert "export MIMBENCH_DATA_BIRDS='/data/small birds'" in learned.setup
    assert found[0].remedy.startswith("export is set to NONE; setup now sets MIMBENCH_DATA_BIRDS, ")
    again, found = of_shell(learned, _seen(learned, tmp_path, {}))
    assert (again, found[0].verdict) == (learned, "ok")
    forced, found = of_shell(learned, _seen(learned, tmp_path, {MARK: "seen"}))
    assert (forced.export, found[0].verdict) == ("ALL", "note")


def test_a_site_that_asks_for_an_export_is_offered_one() -> None:
    """As sites whose job_submit plugin refuses jobs that would inherit the shell."""
    said = "sbatch: error: this cluster takes jobs with --export=NONE only"
    assert "Check export in the profile of cluster site" in str(slurm.refusal(said, Cluster(name="site")))
    assert [one.export for one in candidates(Cluster(name="site"), said)] == ["NONE", "ALL"]
    assert [one.export for one in candidates(Cluster(name="site", export="NONE"), said)] == ["ALL"]


def test_a_container_is_tried_where_the_node_has_what_runs_it(tmp_path: Path) -> None:
    """The shell ends before srun where it has not."""
    profile = Cluster(name="site", container="/images/a.sif")
    lacking = _seen(profile, tmp_path, {})
    found = container(profile, lacking)
    assert (found.verdict, found.remedy) == ("problem", "`mimbench cluster add site container=none`")
    assert "container=/images/a.sif, but Apptainer is not on " in found.found
    (tmp_path / "bin" / "apptainer").write_text("#!/bin/bash\n")
    (tmp_path / "bin" / "apptainer").chmod(0o755)
    assert container(profile, _seen(profile, tmp_path, {})).found == "the probe ran in /images/a.sif, by Apptainer"
    pyxis = replace(profile, container_kind="pyxis")
    assert container(pyxis, _seen(pyxis, tmp_path, {})).remedy == "`mimbench cluster add site container_kind=apptainer`"
    none = replace(profile, container=None)
    assert "container=IMAGE" in container(none, _seen(none, tmp_path, {})).remedy
