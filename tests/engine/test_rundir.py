"""Run directories: what their files say, and that a run is never started twice."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mimbench.engine.run import rundir
from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import SILENCE, RunDir

ABOUT = {"recipe": "cls/knn", "stage": "cls", "identity": "0123456789"}
OTHERS = {"started": 0.0, "process_started": 0.0}  # of a start by another process


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A new run."""
    return RunDir.create(tmp_path / "cls" / "knn-0123456789", "seed = 0\n", ABOUT)


def test_created_once(run: RunDir) -> None:
    assert run.read_about() == ABOUT
    again = RunDir.create(run.path, "seed = 1\n", {**ABOUT, "recipe": "other"})
    assert again == run
    assert again.config.read_text() == "seed = 0\n"
    assert again.read_about() == ABOUT


def test_nothing_stays_of_one_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(rundir, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        RunDir.create(tmp_path / "cls" / "knn-0", "seed = 0\n", ABOUT)
    assert not (tmp_path / "cls" / "knn-0").exists()


def test_the_life_of_a_run(run: RunDir) -> None:
    assert run.state() == "new"
    assert run.read_result() is None
    first = run.begin_attempt()
    assert (first, run.state()) == (1, "running")
    run.end_attempt(first, "failed", "disk full")
    assert run.state() == "failed"
    second = run.begin_attempt()
    assert (second, run.state()) == (2, "running")
    run.end_attempt(second, "interrupted")
    assert run.state() == "interrupted"
    write_json(run.result, {"metrics": {}})
    assert run.state() == "done"
    assert [attempt["state"] for attempt in run.attempts()] == ["failed", "interrupted"]
    assert run.attempts()[0]["why"] == "disk full"
    assert run.attempts()[0]["ended"] >= run.attempts()[0]["started"]


def test_attempts_are_in_the_order_of_their_numbers(run: RunDir) -> None:
    for _ in range(11):
        run.end_attempt(run.begin_attempt(), "failed")
    (run.path / "attempts" / "notes.json").write_text("mine")
    assert len(run.attempts()) == 11
    assert run.begin_attempt() == 12


def test_a_running_run_is_not_started_again(run: RunDir) -> None:
    run.begin_attempt()
    with pytest.raises(ValueError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        run.begin_attempt()


def test_of_several_that_start_it_at_once_one_does(run: RunDir) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(2)
    code = (
        "import sys, pathlib; from mimbench.engine.run.rundir import RunDir\n"
        "run = RunDir(pathlib.Path(sys.argv[1])); input()\n"
        "try: run.begin_attempt(); print('mine', flush=True); input()\n"
        "except ValueError as error: print('theirs', flush=True)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]

    def start(process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        barrier.wait()
        process.stdin.write("\n")
        process.stdin.flush()
        outcomes.append(process.stdout.readline().strip())

    threads = [threading.Thread(target=start, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.communicate("\n")
    assert sorted(outcomes) == ["mine", "theirs"]
    assert len(run.attempts()) == 1
    assert run.state() == "lost"  # the winner is gone by now


def _rewrite(run: RunDir, **changes: object) -> Path:
    file = run.path / "attempts" / "1.json"
    write_json(file, {**json.loads(file.read_text()), **changes})
    return file


def test_a_start_while_another_looks_is_noticed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    look = RunDir.state

    def look_and_let_another_begin(self: RunDir) -> str:
        found = look(self)
        if found == "new":
            write_json(self.path / "attempts" / "1.json", {"host": "elsewhere", "pid": 1, "state": "running", **OTHERS})
        return found

    monkeypatch.setattr(RunDir, "state", look_and_let_another_begin)
    with pytest.raises(ValueError, match="process 1 on elsewhere"):
        run.begin_attempt()
    assert len(run.attempts()) == 1


def test_a_run_that_is_done_is_not_begun_again(run: RunDir) -> None:
    write_json(run.result, {"metrics": {}})
    with pytest.raises(ValueError, match="is already done"):
        run.begin_attempt()


def test_lost_when_its_process_is_gone_or_is_another_with_its_number(run: RunDir) -> None:
    run.begin_attempt()
    started = run.attempts()[0]["process_started"]
    _rewrite(run, process_started=started - 60)
    assert run.state() == "lost"
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    _rewrite(run, pid=process.pid, process_started=started)
    assert run.state() == "lost"
    assert run.begin_attempt() == 2


def test_a_zombie_is_gone(run: RunDir) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run.begin_attempt()
    _rewrite(run, pid=process.pid, process_started=rundir.process_started(process.pid))
    assert run.state() == "running"
    process.kill()
    deadline = time.monotonic() + 10
    while run.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.state() == "lost", "it has ended, though nobody has waited for it"
    process.communicate()


def test_on_another_machine_it_lives_as_long_as_its_heart_beats(run: RunDir) -> None:
    run.begin_attempt()
    file = _rewrite(run, host="another-machine")
    assert run.state() == "running"
    old = time.time() - SILENCE - 10
    os.utime(file, (old, old))
    assert run.state() == "lost"
    run.beat(1)
    assert run.state() == "running"


def test_what_is_not_a_run_directory_says_so(tmp_path: Path, run: RunDir) -> None:
    with pytest.raises(ValueError, match="is not a run directory"):
        RunDir(tmp_path).read_about()
    run.result.write_text("{")
    with pytest.raises(ValueError, match=r"damaged result.json"):
        run.read_result()


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"metrics": null}', '{"metrics": {"knn_top1": "41"}}'])
def test_a_damaged_result_is_named_with_what_to_do(run: RunDir, text: str) -> None:
    run.result.write_text(text)
    with pytest.raises(ValueError, match=r"knn-0123456789 has a damaged result\.json"):
        run.read_result()


@pytest.mark.parametrize("text", ["", "[]", '"running"', '{"state": "running"}'])
def test_a_damaged_start_is_named_with_what_to_do(run: RunDir, text: str) -> None:
    run.end_attempt(run.begin_attempt(), "interrupted")
    (run.path / "attempts" / "2.json").write_text(text)
    for asked in (run.state, run.attempts, run.begin_attempt):
        with pytest.raises(ValueError, match=r"knn-0123456789 has a damaged attempts/2\.json: remove it \("):
            asked()
    (run.path / "attempts" / "2.json").unlink()
    assert run.begin_attempt() == 2


def test_a_file_without_what_a_run_is_makes_no_run_directory(run: RunDir) -> None:
    run.about.write_text('{"recipe": "cls/knn"}')
    with pytest.raises(ValueError, match=r"run\.json .*stage"):
        run.read_about()


def test_done_without_its_result_it_can_be_run_again(run: RunDir) -> None:
    number = run.begin_attempt()
    write_json(run.result, {"metrics": {}})
    run.end_attempt(number, "done")
    run.result.unlink()
    assert run.state() == "lost"
    assert run.begin_attempt() == 2
