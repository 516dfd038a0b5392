"""Stages and processes without torch, so that the machinery around them is tested in milliseconds."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.local import scheduler as local
from mimbench.jobs.local.display import Display
from mimbench.jobs.local.scheduler import Local
from mimbench.jobs.runs.store import create_or_find, resolve, runs_root
from mimbench.jobs.studies.study import Run, Study
from tests.jobs import mine
from tests.jobs.browser import Browser, program

ROOT = Path(__file__).parents[2]
Stage = Callable[[Any, RunDir], Outcome]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, for the pages of one test file."""
    if program() is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium to open pages in, and CI must have one")
        pytest.skip("there is no Chromium to open pages in")
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory that passes for a data set."""
    directory = tmp_path / "some images"
    directory.mkdir()
    return directory


@pytest.fixture
def made() -> list[RunDir]:
    """A pretraining that is done, and three evaluations: done, failed, new."""
    return mine.make()


@pytest.fixture
def knn(images: Path) -> RunDir:
    """A new k-NN run."""
    recipe, config = resolve("cls/knn", [f"data={images}"])
    return create_or_find(recipe.name, config, runs_root())


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stage], None]:
    """Put a function in the place of what classification runs do."""

    def install(run: Stage) -> None:
        monkeypatch.setitem(sys.modules, "mimbench.cls.run", SimpleNamespace(run=run))  # type: ignore[misc]

    return install


PROCESS = """
import os, pathlib, signal, sys, time
from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rundir import RunDir
from tests.jobs.encoder_file import encoder_bytes
signal.signal(signal.SIGINT, signal.SIG_IGN)
run, behaviour = RunDir(pathlib.Path(sys.argv[1])), sys.argv[2]
if behaviour == "never begins":
    print("cannot import torch"); sys.exit(1)
def end(*_):
    run.end_attempt(len(run.attempts()), "interrupted"); os._exit(0)
if behaviour != "stubborn":
    signal.signal(signal.SIGTERM, end)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
number = run.begin_attempt()
with (run.path.parent.parent / "order").open("a") as order:
    order.write(run.config.read_text().split("seed = ")[1].split()[0] + "\\n")
if behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "killed later" and number < 5:
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / f"step-{number // 2:08d}.pt").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "keeps an encoder":
    run.encoder_at(3).parent.mkdir()
    run.encoder_at(3).write_bytes(encoder_bytes("early weights"))
    time.sleep(3)
if behaviour == "fails":
    run.log.write_text("reading\\nERROR the data are no good\\n")
    run.end_attempt(number, "failed", "the data are no good"); sys.exit(0)
if behaviour in ("sleeps", "stubborn"):
    time.sleep(60)
time.sleep(0.3)
run.encoder.write_bytes(encoder_bytes("weights"))
write_result(run, Outcome({"knn_top1": 50.0}), 1.0)
run.end_attempt(number, "done")
"""


@dataclass
class Process:
    """Stands for the process of a run."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def done(self) -> bool:
        return self.process.poll() is not None


class Bench:
    """Behaviours by seed, and what was submitted."""

    def __init__(self) -> None:
        self.behaviours: dict[int, str] = {}
        self.submitted: list[tuple[int, str | None, int]] = []
        self.screen = io.StringIO()
        self.threads = 0

    def launcher(self, threads: int, cores: int = 1) -> Bench:
        self.threads = threads
        return self

    def close(self) -> None:
        """Leave the processes to the test."""

    def submit(self, run: RunDir, visible: str | None, processes: int = 1) -> Process:
        seed = int(run.config.read_text().split("seed = ")[1].split()[0])
        self.submitted.append((seed, visible, self.threads))
        output = run.path / "output"
        command = [sys.executable, "-c", PROCESS, str(run.path), self.behaviours.get(seed, "")]
        with output.open("w") as handle:
            return Process(subprocess.Popen(command, cwd=ROOT, stdout=handle), output)

    def local(self, runs: list[Run], slots: int = 2) -> Local:
        console = Console(file=self.screen, width=200)
        return Local(Study("test", runs), runs_root(), slots, Display(console))

    def order(self) -> list[int]:
        return [int(line) for line in (runs_root() / "order").read_text().split()]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A scheduler over processes that only pretend."""
    made = Bench()
    monkeypatch.setattr(local, "Launcher", made.launcher)
    monkeypatch.setattr(local, "POLL", 0.02)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made
