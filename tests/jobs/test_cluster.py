"""Cluster profiles, and what becomes of them in an sbatch file. No SLURM is needed: tests/slurm has the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.jobs.slurm import cluster
from mimbench.jobs.slurm.cluster import Cluster, Shape
from mimbench.jobs.slurm.commands import SilentError, refusal
from mimbench.jobs.slurm.sbatch import Executor, scrubbed
from mimbench.jobs.slurm.submission import Batch

GPU = Cluster(name="a100", partition="gpu", gpu_type="a100", gpus_per_node=4, cpus_per_task=10, memory_gb=64.0)


def test_a_profile_is_written_read_and_changed() -> None:
    file = cluster.add("a100", ["partition=gpu", "gpu_type=a100", "setup=module load cuda", "minutes=600"])
    assert file.name == "a100.toml"
    found = cluster.load("a100")
    assert (found.name, found.partition, found.minutes) == ("a100", "gpu", 600)
    assert found.setup == ("module load cuda",)
    cluster.add("a100", ["qos=normal"])
    assert (cluster.load("a100").qos, cluster.load("a100").partition) == ("normal", "gpu")
    assert cluster.names() == ["local", "a100"]
    assert "minutes = 600  # default time limit of a job" in file.read_text()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["partitoin=gpu"], "unknown key 'partitoin'; did you mean partition"),
        (["minutes=0"], "minutes=0 must be at least 1"),
        (["minutes=100", "max_minutes=60"], "minutes=100 exceeds the site's limit max_minutes=60"),
        (["cpus_per_task=many"], "cpus_per_task='many'"),
        (["sbatch=-x"], "is not a long option"),
        (["signal=KILL"], "signal='KILL'"),
    ],
)
def test_a_wrong_profile_is_one_line(settings: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        cluster.add("site", settings)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert cluster.names() == ["local"], "nothing is written"


def test_an_unknown_cluster_and_names_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"unknown cluster 'a10' \(known: local\); `mimbench cluster add a10"):
        cluster.load("a10")
    for name in ("local", "../x", ""):
        with pytest.raises(ValueError, match="is not a valid cluster name"):
            cluster.add(name, [])


def test_shapes() -> None:
    assert GPU.shape(gpus=4, nodes=2, minutes=30) == Shape(2, 4, 10, 4, 256.0, 30)
    assert replace(GPU, gpus_per_node=0).shape(gpus=2).gpus == 0
    assert GPU.shape(gpus=8, minutes=30) == Shape(2, 4, 10, 4, 256.0, 30), "nodes half as large: twice as many"
    with pytest.raises(ValueError, match=r"6 GPUs .*gpus_per_node=4 .*a100"):
        GPU.shape(gpus=6)
    with pytest.raises(ValueError, match="a time limit of 5000 minutes exceeds max_minutes=2880 of cluster a100"):
        replace(GPU, max_minutes=2880).shape(minutes=5000)


def _text(profile: Cluster, runs: dict[int, str], root: Path, dependency: str | None = None) -> str:
    shape = profile.shape(gpus=2)
    batch = Batch(root, profile.name, "vit", runs, shape, id="0011aabb", code={"snapshot": str(root / "code")})
    return Executor(batch, profile, dependency).text()


def test_the_sbatch_file(tmp_path: Path) -> None:
    root = tmp_path / "o'hara's runs"
    profile = replace(
        GPU, account="vision", throttle=3, setup=("module load cuda",), sbatch=("--reservation=x", "--nice")
    )
    text = _text(profile, {0: "cls/a b", 3: "cls/c", 4: "cls/d", 5: "cls/e"}, root, "aftercorr:12")
    written = {line for line in text.splitlines() if line.startswith("#SBATCH")}
    assert written >= {
        "#SBATCH --array=0,3-5%3",
        "#SBATCH --account=vision",
        "#SBATCH --dependency=aftercorr:12",
        "#SBATCH --gpus-per-node=a100:2",
        "#SBATCH --job-name=vit.0011aabb",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --mem=131072MB",
        "#SBATCH --nice",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --requeue",
        "#SBATCH --reservation=x",
        "#SBATCH --signal=USR2@120",
    }
    assert not any("wckey" in option for option in written), "some sites reject one they do not know"
    assert "--kill-on-bad-exit=1 --export=ALL --cpus-per-task=10 " in text
    lines = text.replace("srun --unbuffered", 'printf "%s\\n" "$PYTHONPATH" "$run" "$job" #').replace(
        "module load", "true"
    )
    bash = ["bash", "-c", lines]
    env = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "12", "PATH": os.environ["PATH"]}
    shown = subprocess.run(bash, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown == [str(root / "code"), str(root / "cls/a b"), "12_0"]


def test_site_facts_change_the_file(tmp_path: Path) -> None:
    profile = replace(GPU, gpu_request="gres", srun_inherits_cpus=True, can_requeue=False, signal="USR1")
    text = _text(profile, {0: "cls/a"}, tmp_path)
    assert "#SBATCH --gres=gpu:a100:2" in text
    assert "#SBATCH --no-requeue" in text
    assert "#SBATCH --signal=USR1@120" in text
    assert "--cpus-per-task=10 " not in text.partition("srun ")[2]
    assert "mimbench.jobs.slurm.job" not in text
    assert "--array" not in text


def test_the_environment_is_scrubbed_but_slurm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/x")
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("RANK", "3")
    with scrubbed():
        assert os.environ["SLURM_CONF"] == "/etc/x"
        assert not {"SLURM_CPU_BIND", "SBATCH_PARTITION", "RANK"} & set(os.environ)
    assert os.environ["SLURM_CPU_BIND"] == "quiet,mask_cpu:0x1"


def test_slurms_words_name_the_key() -> None:
    said = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    error = refusal(said, replace(GPU, partition=None, account="visoin"))
    assert "Invalid account" in str(error)
    assert "account=visoin in the profile of cluster a100" in str(error)
    silent = refusal("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)")
    assert isinstance(silent, SilentError)


def test_the_commands(tmp_path: Path) -> None:
    def mimbench(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from mimbench.jobs.cli.main import main; main()", *arguments]
        return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)

    assert mimbench("cluster", "add", "a100", "partition=gpu").returncode == 0
    assert mimbench("cluster", "show").stdout.split() == ["local", "a100"]
    assert 'partition = "gpu"' in mimbench("cluster", "show", "a100").stdout
    wrong = mimbench("cluster", "add", "a100", "qoss=x")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert wrong.stderr.startswith("error: unknown key 'qoss'; did you mean qos")


@pytest.mark.parametrize(
    "module",
    [
        f"mimbench.jobs.{name}"
        for name in ("slurm.cluster", "slurm.schedulers", "slurm.job", "slurm.sbatch", "cli.cluster")
    ],
)
def test_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
