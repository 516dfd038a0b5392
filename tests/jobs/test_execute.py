"""Running a directory: how each ending is written down, said, and turned into an exit code."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs import execute as module
from mimbench.jobs.runs.execute import execute, explained

ROOT = Path(__file__).parents[2]
Install = Callable[[Callable[[Any, RunDir], Outcome]], None]
GOOD = Outcome({"knn_top1": 12.5}, {"pool": "avg"})


def _raising(error: BaseException) -> Callable[[Any, RunDir], Outcome]:
    def run(config: Any, run: RunDir) -> Outcome:
        raise error

    return run


def test_a_run_that_ends_well(knn: RunDir, stage: Install) -> None:
    seen = []

    def run(config: Any, run: RunDir) -> Outcome:
        seen.append((config.k, run.state()))
        logging.getLogger("mimbench.cls.frozen.knn").info("encoding")
        return GOOD

    stage(run)
    assert execute(knn) == 0
    assert seen == [(20, "running")]
    assert knn.state() == "done"
    assert knn.attempts()[0]["state"] == "done"
    result = knn.read_result()
    assert result is not None
    assert result["metrics"] == {"knn_top1": 12.5}
    assert 0 <= result["seconds"] < 10
    assert "encoding" in knn.log.read_text()


def test_what_is_done_is_not_repeated(knn: RunDir, stage: Install, capsys: pytest.CaptureFixture[str]) -> None:
    stage(lambda config, run: GOOD)
    assert execute(knn) == 0
    stage(_raising(AssertionError("repeated")))
    assert execute(knn) == 0
    assert "is already done and is not repeated" in capsys.readouterr().err
    assert len(knn.attempts()) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.json: image 7 does not exist; remove it\nmore"), "a.json: image 7 does not exist; remove it"),
        (FileNotFoundError("checkpoint e.pth does not exist"), "checkpoint e.pth does not exist"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), "x.png: Permission denied"),
        (MemoryError("800 GiB"), "out of memory (800 GiB); increase compute.accumulate"),
    ],
)
def test_bad_input_is_one_line(
    knn: RunDir, stage: Install, capsys: pytest.CaptureFixture[str], error: BaseException, line: str
) -> None:
    stage(_raising(error))
    assert execute(knn) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"error: {line}")
    assert not any("Traceback" in text for text in err)
    assert knn.state() == "failed"
    assert knn.attempts()[0]["why"].startswith(line)
    log = knn.log.read_text()
    assert "Traceback" in log
    assert line in log.splitlines()[-1]


def test_a_fault_of_ours_says_where_the_traceback_is(
    knn: RunDir, stage: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(_raising(KeyError("pos_embed")))
    assert execute(knn) == 1
    err = capsys.readouterr().err
    assert f"error: KeyError: 'pos_embed' (unexpected error; the traceback is in {knn.log})" in err
    assert "Traceback" not in err
    assert "Traceback" in knn.log.read_text()


def test_what_a_data_loading_process_said_is_what_counts() -> None:
    passed_on = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    raise ValueError\nValueError: val/a/3.JPEG: cannot be decoded\n'
    )
    assert explained(ValueError(passed_on)) == "val/a/3.JPEG: cannot be decoded"
    oserror = passed_on.replace("ValueError: val", "PIL.UnidentifiedImageError: cannot identify: val")
    assert explained(OSError(oserror)) == "cannot identify: val/a/3.JPEG: cannot be decoded"


def test_a_failed_run_is_tried_again(knn: RunDir, stage: Install) -> None:
    stage(_raising(ValueError("no")))
    assert execute(knn) == 1
    stage(lambda config, run: GOOD)
    assert execute(knn) == 0
    assert [attempt["state"] for attempt in knn.attempts()] == ["failed", "done"]
    assert "attempt 1" in knn.log.read_text(), "the log is carried on"


def test_a_result_that_is_not_a_number_is_a_failure(knn: RunDir, stage: Install) -> None:
    stage(lambda config, run: Outcome({"knn_top1": float("nan")}))
    assert execute(knn) == 1
    assert not knn.result.exists()


def test_a_full_disk(knn: RunDir, stage: Install, capsys: pytest.CaptureFixture[str]) -> None:
    stage(_raising(OSError(errno.ENOSPC, "No space left on device", "1.pth")))
    assert execute(knn) == 1
    go_on = f"`mimbench run {shlex.quote(str(knn.path))}` resumes from the last checkpoint"
    assert f"error: 1.pth: No space left on device; free disk space, then {go_on}" in capsys.readouterr().err


def test_an_end_that_cannot_be_written_down(knn: RunDir, stage: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "attempts/1.json")

    monkeypatch.setattr(RunDir, "end_attempt", full)
    stage(_raising(OSError(errno.ENOSPC, "No space left on device", "1.pth")))
    assert execute(knn) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(
    knn: RunDir, stage: Install, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    def run(config: Any, run: RunDir) -> Outcome:
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("not interrupted")

    stage(run)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert execute(knn) == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert knn.state() == "interrupted"
    assert "interrupted; `mimbench run " in capsys.readouterr().err
    stage(lambda config, run: GOOD)
    assert execute(knn) == 0


def test_an_interruption_that_surfaces_as_another_error(knn: RunDir, stage: Install) -> None:
    def run(config: Any, run: RunDir) -> Outcome:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly") from None
        return GOOD

    stage(run)
    assert execute(knn) == 130
    assert knn.state() == "interrupted"


def test_one_that_is_running_is_refused(knn: RunDir, stage: Install) -> None:
    stage(lambda config, run: GOOD)
    knn.begin_attempt()
    with pytest.raises(ValueError, match="is already running as process"):
        execute(knn)
    assert len(knn.attempts()) == 1


def test_a_killed_run_is_lost_and_can_be_run_again(knn: RunDir, stage: Install) -> None:
    code = (
        "import sys, os, pathlib; from mimbench.engine.run.rundir import RunDir\n"
        "RunDir(pathlib.Path(sys.argv[1])).begin_attempt(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(knn.path)], cwd=ROOT, check=False)
    assert knn.state() == "lost"
    leftover = knn.path / "checkpoints" / ".3.pth.99.tmp"
    leftover.parent.mkdir()
    leftover.write_text("half")
    stage(lambda config, run: GOOD)
    assert execute(knn) == 0
    assert not leftover.exists()


def test_the_seconds_of_a_result_are_those_of_all_attempts(knn: RunDir, stage: Install) -> None:
    stage(_raising(ValueError("no")))
    execute(knn)
    from mimbench.engine.run.atomic import write_json

    first = {**knn.attempts()[0], "started": 1000.0, "ended": 1100.0}
    write_json(knn.path / "attempts" / "1.json", first)
    stage(lambda config, run: GOOD)
    execute(knn)
    result = knn.read_result()
    assert result is not None
    assert 100 <= result["seconds"] < 110


def test_the_heart_beats(knn: RunDir, stage: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    file = knn.path / "attempts" / "1.json"

    def run(config: Any, run: RunDir) -> Outcome:
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 5
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
        return GOOD

    stage(run)
    assert execute(knn) == 0


def test_warnings_of_libraries_are_for_the_file(
    knn: RunDir, stage: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Any, run: RunDir) -> Outcome:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("something is slow", stacklevel=1)
        logging.getLogger("engine.x").warning("a damaged checkpoint")
        logging.getLogger("some.library").info("chatter")
        return GOOD

    stage(run)
    execute(knn)
    err, log = capsys.readouterr().err, knn.log.read_text()
    assert "a damaged checkpoint" in err
    assert "a damaged checkpoint" in log
    assert "something is slow" in log
    assert "something is slow" not in err
    assert "chatter" not in log + err


def test_only_rank_0_keeps_the_books(knn: RunDir, stage: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stage(lambda config, run: GOOD)
    assert execute(knn) == 0
    assert knn.state() == "new"
