"""A real SLURM for a test session, and tiny trainings to run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.store import create_or_find, resolve
from mimbench.jobs.slurm import commands
from mimbench.jobs.slurm.cluster import Cluster as Profile
from mimbench.jobs.slurm.cluster import add, load
from mimbench.jobs.slurm.job import steps_done
from mimbench.jobs.slurm.schedulers import Unit, status_of, submit
from tests.slurm.cluster import Cluster, missing, wait_for

PRETRAIN = "pretrain/crossmae_handwritten"
LONG = (
    "epochs=24", "warmup_epochs=1", "batch=20", "monitor.images=0", "monitor.every=1000", "compute.save_every=5",
    "compute.log_every=5",
)  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, started for this session and stopped after it."""
    if why := missing():
        pytest.skip(why)
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handwritten data set of 100 images."""
    return make_handwritten(tmp_path_factory.mktemp("data") / "digits", 0, Sizes(100, 20, coco_train=8, coco_val=8))


@pytest.fixture
def profile(cluster: Cluster, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The profile of that cluster, and an environment in which SLURM's commands find it."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(digits))
    monkeypatch.setattr(commands, "EVERY", 0.5)
    settings = ("partition=low", "gpus_per_node=0", "cpus_per_task=1", "minutes=30", "signal_seconds=90")
    add("tiny", settings)
    return load("tiny")


class Site:
    """A runs root on the cluster, with what tests do there."""

    def __init__(self, root: Path, profile: Profile, cluster: Cluster) -> None:
        self.root, self.profile, self.cluster = root, profile, cluster

    def pretrain(self, *overrides: str) -> RunDir:
        """A pretraining of some seconds."""
        recipe, config = resolve(PRETRAIN, (*LONG, *overrides))
        return create_or_find(recipe.name, config, self.root)

    def knn(self, pretrained: RunDir, *overrides: str) -> RunDir:
        """A k-NN evaluation of what a pretraining makes."""
        from mimbench.jobs.studies.study import Run, Study

        about = pretrained.read_about()
        assert about["recipe"] == PRETRAIN
        first = Run(PRETRAIN, (*LONG, *self._differences(pretrained)))
        second = Run("cls/knn_handwritten", overrides, checkpoint=first)
        return Study("needs", [first, second]).prepare(self.root)[second]

    @staticmethod
    def _differences(run: RunDir) -> tuple[str, ...]:
        seed = run.config.read_text().split("seed = ")[1].split()[0]
        return () if seed == "0" else (f"seed={seed}",)

    def submit(self, *runs: RunDir, needs: tuple[RunDir, ...] = (), tasks: int = 1, **shape: int) -> None:
        """Hand in runs of one shape."""
        wanted = self.profile.shape(gpus=tasks, **shape)
        submit([Unit(run, wanted, needs, "tiny") for run in runs], self.profile, self.root)

    def status(self, run: RunDir) -> str:
        """What mimbench says of the run."""
        return status_of(run, commands.queue(self.profile, self.root), self.profile)

    def wait(self, run: RunDir, status: str, seconds: float = 400) -> None:
        """Until the run has a status; that it failed is not waited out."""
        seen = ""

        def settled() -> bool:
            nonlocal seen
            seen = self.status(run)
            return seen in (status, "failed")

        try:
            wait_for(settled, seconds, f"{run.path.name} {status}")
            if seen != status:
                raise TimeoutError(f"{run.path.name} is not {status}")
        except TimeoutError as error:
            said = "\n".join(file.read_text()[-1500:] for file in (self.root / ".mimbench").rglob("*_log.out"))
            queue = self.cluster.ask("squeue", "-r", "-o", "%i %j %T %r %S")
            raise AssertionError(f"{error}; now {self.status(run)}, {run.attempts()}\n{queue}\n{said}") from None

    def wait_for_step(self, run: RunDir, step: int, seconds: float = 300) -> None:
        """Until the run has saved a checkpoint at `step` or later."""
        try:
            wait_for(lambda: steps_done(run) >= step, seconds, f"step {step} of {run.path.name}")
        except TimeoutError as error:
            said = "\n".join(file.read_text()[-1500:] for file in (self.root / ".mimbench").rglob("*_log.out"))
            raise AssertionError(f"{error}; {self.cluster.ask('squeue', '-r')}\n{said}") from None

    def preempt(self) -> None:
        """A job that wants all of both nodes at once."""
        self.cluster.ask("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


@pytest.fixture
def site(tmp_path: Path, profile: Profile, cluster: Cluster) -> Site:
    """A runs root in a directory whose name has a space and a quote."""
    return Site(tmp_path / "my 'runs'", profile, cluster)


def in_another_shell(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Python code run by a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, env=dict(os.environ), stdout=subprocess.PIPE, text=True)
