"""The local scheduler: order, needs, failures, interruption. Its processes here do no training, but for one test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.local import launcher
from mimbench.jobs.local import scheduler as local
from mimbench.jobs.local.display import Display
from mimbench.jobs.local.processes import Memory
from mimbench.jobs.local.scheduler import Local
from mimbench.jobs.runs.devices import visible_devices
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies.study import Run, Study

if TYPE_CHECKING:
    from tests.jobs.conftest import Bench


def _knn(seed: int, checkpoint: Run | None = None, minutes: float = 1.0) -> Run:
    return Run("cls/knn_handwritten", (f"seed={seed}",), checkpoint, f"knn {seed}", minutes)


def _pretrain(seed: int, minutes: float = 1.0) -> Run:
    return Run("pretrain/crossmae_handwritten", (f"seed={seed}",), None, f"pretrain {seed}", minutes)


def test_needs_first_then_the_longest(bench: Bench) -> None:
    first = _pretrain(0, minutes=0.5)
    runs = [_knn(1, minutes=1), _knn(2, first, minutes=9), _knn(3, first, minutes=5), _knn(4, minutes=8), first]
    tasks = bench.local(runs, slots=1).run()
    assert [task.fate for task in tasks] == ["done"] * 5
    assert bench.order() == [0, 2, 4, 3, 1]
    assert tasks[1].directory is not None
    assert tasks[1].directory.read_about()["checkpoint"]["path"] == str(first.directory(runs_root()).encoder.absolute())


def test_slots_run_side_by_side_and_share_the_cores(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 7)
    began = time.monotonic()
    bench.local([_knn(seed) for seed in range(3)], slots=3).run()
    assert [threads for *_, threads in bench.submitted] == [2, 2, 2]
    assert time.monotonic() - began < 10


def test_each_slot_has_its_gpu(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    bench.local([_knn(seed) for seed in range(4)], slots=4).run()
    assert sorted(str(visible) for _, visible, _ in bench.submitted) == ["3", "3", "GPU-abc", "GPU-abc"]


def test_a_failure_takes_along_only_what_needs_it(bench: Bench) -> None:
    bench.behaviours = {0: "fails"}
    first, second = _pretrain(0), _pretrain(1)
    tasks = bench.local([first, _knn(2, first), second, _knn(3, second), _knn(4)]).run()
    assert [task.fate for task in tasks] == ["failed", "left out", "done", "done", "done"]
    assert tasks[0].why == "the data are no good"
    assert tasks[1].why == "it needs pretrain 0"
    screen = bench.screen.getvalue()
    assert "pretrain 0: failed: the data are no good" in screen
    assert "ERROR the data are no good" not in screen, "one line, as from `mimbench run`: the rest is in the log"
    assert "log.txt" in screen
    assert "knn 2: left out: it needs pretrain 0" in screen


def test_a_chain_of_what_was_left_out(bench: Bench) -> None:
    bench.behaviours = {0: "fails"}
    first = _pretrain(0)
    tasks = bench.local([first, _knn(1, first)]).run()
    again = bench.local([first, _knn(1, first)])
    bench.behaviours = {}
    assert [task.fate for task in tasks] == ["failed", "left out"]
    assert [task.fate for task in again.run()] == ["done", "done"], "asked again, what failed is tried again"


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("killed", "its process was killed 3 times without"),
        ("never begins", "its process ended before the run began: cannot import torch"),
    ],
)
def test_a_process_that_dies_without_a_word(bench: Bench, behaviour: str, why: str) -> None:
    bench.behaviours = {0: behaviour}
    tasks = bench.local([_knn(0), _knn(1)]).run()
    assert [task.fate for task in tasks] == ["failed", "done"]
    assert why in tasks[0].why
    assert len(bench.submitted) == (4 if behaviour == "killed" else 2), "one that is killed starts three times"


def test_one_that_is_killed_goes_on_as_long_as_it_gets_further(bench: Bench) -> None:
    bench.behaviours = {0: "killed later"}
    [task] = bench.local([_knn(0)]).run()
    assert task.directory is not None
    assert (task.fate, len(bench.submitted)) == ("done", 5)
    assert [attempt["state"] for attempt in task.directory.attempts()] == ["running"] * 4 + ["done"]


def test_asked_again_nothing_is_repeated(bench: Bench) -> None:
    runs = [_knn(0), _knn(1)]
    bench.local(runs).run()
    tasks = bench.local(runs).run()
    assert [(task.fate, task.done_before) for task in tasks] == [("done", True)] * 2
    assert len(bench.submitted) == 2
    assert "(already done)" in bench.screen.getvalue()


def test_an_evaluation_on_the_way_starts_when_its_encoder_is_there(bench: Bench) -> None:
    pretrain = Run("pretrain/crossmae_handwritten", ("seed=0",))
    early = Run("cls/knn_handwritten", ("seed=1",), pretrain, epoch=3)
    last = _knn(2, pretrain)
    bench.behaviours = {0: "keeps an encoder"}
    tasks = bench.local([pretrain, early, last], slots=2).run()
    assert [task.fate for task in tasks] == ["done"] * 3
    ended, began = (task.directory.attempts()[0] if task.directory else {} for task in tasks[:2])
    assert began["started"] < ended["ended"], "the pretraining was still going on"


def test_a_run_of_another_process_is_waited_for(bench: Bench) -> None:
    run = _knn(0)
    directory = run.directory(runs_root())
    number = directory.begin_attempt()

    def finish() -> None:
        time.sleep(0.5)
        directory.result.write_text(json.dumps({"metrics": {"knn_top1": 1.0}}))
        directory.end_attempt(number, "done")

    threading.Thread(target=finish).start()
    [task] = bench.local([run]).run()
    assert (task.fate, bench.submitted) == ("done", [])
    assert "another process is running it" in bench.screen.getvalue()


def test_one_that_the_other_process_did_not_finish_is_done_here(bench: Bench) -> None:
    run = _knn(0)
    directory = run.directory(runs_root())
    number = directory.begin_attempt()
    threading.Timer(0.5, lambda: directory.end_attempt(number, "interrupted")).start()
    [task] = bench.local([run]).run()
    assert (task.fate, len(bench.submitted)) == ("done", 1)


def test_a_checkpoint_that_is_missing_fails_its_run_alone(bench: Bench, tmp_path: Path) -> None:
    lost = Run("cls/knn_handwritten", checkpoint=tmp_path / "gone.pth", label="lost")
    tasks = bench.local([lost, _knn(1)]).run()
    assert [task.fate for task in tasks] == ["failed", "done"]
    assert "gone.pth does not exist" in tasks[0].why


def _when_running(count: int, do: Callable[[], None]) -> None:
    """Call `do` from a thread once `count` runs are running."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            runs = [RunDir(file.parent) for file in runs_root().glob("*/*/run.json")]
            if [run.state() for run in runs].count("running") == count:
                break
            time.sleep(0.05)
        do()

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def heard() -> Iterator[None]:
    """The signals of a person at a terminal, which a shell ignores for what it runs in the background."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_stops_its_processes_in_order(bench: Bench, number: signal.Signals) -> None:
    bench.behaviours = {0: "sleeps", 1: "sleeps"}
    scheduler = bench.local([_knn(0), _knn(1), _knn(2)])
    _when_running(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    states = [task.directory.state() if task.directory else None for task in scheduler.tasks]
    assert states == ["interrupted", "interrupted", None]
    assert [task.fate for task in scheduler.tasks] == ["stopped"] * 3
    assert all(task.job is None or task.job.done() for task in scheduler.tasks)
    bench.behaviours = {}
    assert [task.fate for task in bench.local([_knn(0), _knn(1), _knn(2)]).run()] == ["done"] * 3


@pytest.mark.usefixtures("heard")
def test_a_process_that_will_not_end_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 1.0)
    bench.behaviours = {0: "stubborn"}
    scheduler = bench.local([_knn(0)])
    _when_running(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    [task] = scheduler.tasks
    assert task.directory is not None
    deadline = time.monotonic() + 5
    while task.directory.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert task.directory.state() == "lost"


def test_on_a_terminal_every_run_has_a_bar(bench: Bench) -> None:
    console = Console(file=bench.screen, width=120, force_terminal=True)
    bench.behaviours = {1: "fails"}
    study = Study("test", [_knn(0), _knn(1)])
    Local(study, runs_root(), 2, Display(console)).run()
    screen = bench.screen.getvalue()
    assert "knn 0" in screen
    assert "knn_top1 50" in screen
    assert "the data are no good" in screen


def test_the_memory_of_the_whole_tree_is_seen() -> None:
    child = "b = bytearray(2**27); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    memory = Memory()
    memory.look()
    process.communicate(b"\n")
    assert memory.peak > 2**27


def test_no_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2")
    assert visible_devices() == ["0", "2"]


@pytest.mark.slow
def test_runs_are_forked_from_one_process(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_RUNS", str(tmp_path / "somebody's runs"))
    runs = [Run("cls/knn", (f"data={images}", f"seed={seed}"), label=f"knn {seed}") for seed in (0, 1)]
    scheduler = Local(Study("test", runs), runs_root(), 1)
    forking: list[int] = []
    monkeypatch.setattr(scheduler.display, "draw", lambda: forking.append(scheduler.launcher.process))
    tasks = scheduler.run()
    assert [task.fate for task in tasks] == ["failed"] * 2
    assert all("images" in task.why for task in tasks), "the data set is empty, and the process that found out said so"
    directories = [task.directory for task in tasks if task.directory is not None]
    assert len({directory.attempts()[0]["pid"] for directory in directories} | set(forking)) == 3, (
        "forks of one process"
    )
    assert not any((directory.path / "submitit").exists() for directory in directories)
    assert not scheduler.launcher.lives
    assert "OMP_NUM_THREADS" in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("forks", [True, False], ids=["forked", "through submitit"])
def test_sigterm_ends_a_run_in_order(images: Path, monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    monkeypatch.setattr(launcher, "FORKS", forks)
    run = Run("cls/knn", (f"data={images}",)).directory(runs_root())
    starting = launcher.Launcher(threads=1, cores=1)
    job = starting.submit(run, None)
    deadline = time.monotonic() + 120
    while run.state() != "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.pid is not None
    if forks:
        assert starting.process is not None
        os.kill(starting.process, signal.SIGKILL)  # a run outlives the process it was forked from
    os.kill(job.pid, signal.SIGTERM)
    while not job.done() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.state() == "interrupted"
    assert "interrupted" in job.output.read_text()
    if forks:
        again = starting.submit(Run("cls/knn", (f"data={images}", "seed=6")).directory(runs_root()), None)
        assert not again.done(), "another process will fork the next run"
        starting.close()
        assert again.done()
