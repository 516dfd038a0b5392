"""Locks: one holder at a time among real processes, whatever becomes of the holder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimbench.jobs.runs import lock as locks
from mimbench.jobs.runs.lock import lock

ROOT = Path(__file__).parents[2]
COUNT = """
import sys, time
from pathlib import Path
from mimbench.jobs.runs.lock import lock
directory, times = Path(sys.argv[1]), int(sys.argv[2])
count = directory / "count"
for _ in range(times):
    with lock(directory / "l", wait=60):
        was = int(count.read_text())
        time.sleep(0.002)  # long enough for another to read the same number, if it could
        count.write_text(str(was + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from mimbench.jobs.runs.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _held(path: Path) -> subprocess.Popen[str]:
    holder = _start(HOLD, path)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


def test_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    processes = [_start(COUNT, tmp_path, 15) for _ in range(4)]
    assert [process.wait(90) for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "60"
    assert [file.name for file in tmp_path.iterdir()] == ["count"], "nothing is left behind"


def test_one_that_is_held_is_waited_for_and_its_holder_named(tmp_path: Path) -> None:
    holder = _held(tmp_path / "l")
    with pytest.raises(ValueError, match=f"l is locked by process {holder.pid} on "), lock(tmp_path / "l", wait=0.3):
        pass
    holder.kill()
    holder.wait()


def test_the_lock_of_a_killed_process_is_taken_by_one_only(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    holder = _held(tmp_path / "l")
    waiting = [_start(COUNT, tmp_path, 5) for _ in range(4)]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert [process.wait(90) for process in waiting] == [0] * 4
    assert (tmp_path / "count").read_text() == "20"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["count"]


def _elsewhere(path: Path, age: float) -> Path:
    """A lock of a process on another host, last heard of `age` seconds ago."""
    mine = path.with_name(f".{path.name}.theirs")
    mine.write_text(json.dumps({"host": "elsewhere", "pid": 7, "process_started": 1.0, "token": mine.name}))
    os.link(mine, path)
    os.utime(path, (time.time() - age,) * 2)
    return mine


def test_on_another_host_silence_counts(tmp_path: Path) -> None:
    mine = _elsewhere(tmp_path / "l", age=30)
    with pytest.raises(ValueError, match="process 7 on elsewhere"), lock(tmp_path / "l", wait=0.2):
        pass
    os.utime(mine, (time.time() - 2 * locks.SILENCE,) * 2)
    with lock(tmp_path / "l", wait=5):
        assert json.loads((tmp_path / "l").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    with lock(tmp_path / "l"):
        os.utime(tmp_path / "l", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "l").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "l").stat().st_mtime > 1e9


def test_who_was_taken_for_gone_does_not_free_the_next_ones_lock(tmp_path: Path) -> None:
    with lock(tmp_path / "l"):
        (tmp_path / "l").unlink()
        theirs = _elsewhere(tmp_path / "l", age=0)
    assert json.loads((tmp_path / "l").read_text())["token"] == theirs.name
