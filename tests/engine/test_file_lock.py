"""The lock between processes of one machine: one at a time, none stale, and a line for who waits."""

from __future__ import annotations

import errno
import fcntl
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mimbench.engine.run.file_lock import file_lock

HOLDER = """
import sys, time
from pathlib import Path
from mimbench.engine.run.file_lock import file_lock
with file_lock(Path(sys.argv[1]), "writing"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1]).with_name("left").touch()
"""


def holder(lock: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lock = tmp_path / "deeper" / "lock"
    with holder(lock, 1.0), file_lock(lock, "writing the data set"):
        assert lock.with_name("left").exists()
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for another process that is writing the data set"
    ]


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", 600)
    process.kill()
    process.wait()
    began = time.monotonic()
    with file_lock(tmp_path / "lock", "writing"):
        assert time.monotonic() - began < 5
    assert not (tmp_path / "left").exists()


def test_a_file_system_without_locks_is_let_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(fcntl, "flock", refused)
    with file_lock(tmp_path / "lock", "writing"):
        pass
    assert f"{tmp_path} does not support locks (No locks available)" in caplog.text
