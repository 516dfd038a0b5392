"""The command with real training, small: interrupted and gone on with, out of disk, out of numbers, and evaluated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.store import runs_root
from tests.command import mimbench, started

pytestmark = pytest.mark.slow
PRETRAIN = ("run", "pretrain/crossmae_handwritten", "epochs=8", "warmup_epochs=1", "batch=20", "compute.workers=0")
OFTEN = ("compute.log_every=1", "compute.save_every=5")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handwritten data set of 100 images."""
    return make_handwritten(tmp_path_factory.mktemp("data") / "digits", 0, Sizes(100, 20, coco_train=8, coco_val=8))


@pytest.fixture(autouse=True)
def data(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `handwritten` is here."""
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(digits))


def _the_run() -> RunDir:
    [about] = runs_root().glob("pretrain/*/run.json")
    return RunDir(about.parent)


def _steps(run: RunDir) -> list[int]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["step"] for line in lines if "lr" in line]


def _when(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_leaves_a_run_that_goes_on() -> None:
    running = started(*PRETRAIN, *OFTEN)
    _when(lambda: any(runs_root().glob("pretrain/*/checkpoints/*5*")))
    os.kill(running.process.pid or 0, signal.SIGINT)
    done = running.wait(60)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("interrupted; `mimbench run ")
    assert "Traceback" not in done.stderr
    run = _the_run()
    assert run.state() == "interrupted"
    resumed = started(*PRETRAIN, *OFTEN)
    _when(lambda: run.state() == "running")
    again = mimbench(*PRETRAIN, *OFTEN)
    assert again.returncode == 1
    assert "is already running as process" in again.stderr
    assert resumed.wait(200).returncode == 0
    assert _steps(run) == list(range(1, 41))
    assert [attempt["state"] for attempt in run.attempts()] == ["interrupted", "done"]


def test_pretrain_evaluate_table_report(tmp_path: Path) -> None:
    assert mimbench(*PRETRAIN, "epochs=1").returncode == 0
    run = _the_run()
    done = mimbench(
        "evaluate", run.path, "--on", "knn,linear", "--data", "handwritten", "--slots", "2", "--json",
        "knn.neighbours=5", "knn.k=5", "linear.epochs=2", "linear.warmup_epochs=1", "linear.batch=20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result["state"] for result in results] == ["done", "done"]
    [row] = json.loads(mimbench("table", "--json").stdout)
    assert row["recipe"].startswith("crossmae_handwritten")
    assert row["metrics"]["knn_top1"]["mean"] == results[0]["metrics"]["knn_top1"]
    assert row["metrics"]["linear_top1"]["mean"] == results[1]["metrics"]["linear_top1"]
    page = tmp_path / "page.html"
    assert mimbench("report", "-o", page).returncode == 0
    assert "Reconstructions" in page.read_text()


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    done = mimbench(*PRETRAIN, *OFTEN, "base_lr=1e38")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "iteration" in line
    assert _the_run().state() == "failed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_RUNS", str(small_disk))
    done = mimbench(*PRETRAIN, *OFTEN)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line
    assert "free disk space, then `mimbench run " in line
    assert "Traceback" not in done.stderr
    run = _the_run()
    assert run.state() in ("failed", "lost")
    assert not list(run.path.rglob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert mimbench("run", run.path).returncode == 0
    assert _steps(run) == list(range(1, 41))


@pytest.mark.parametrize("asked", ["cls/knn_handwritten neighbours=[10] k=10", "cls/finetune_handwritten epochs=1"])
def test_a_truncated_picture_is_named(
    asked: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(digits, broken)
    picture = sorted((broken / "images" / "val").rglob("*.png"))[3]
    os.truncate(picture, picture.stat().st_size // 2)
    done = mimbench("run", *asked.split(), f"data={broken}")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert str(picture) in line
    assert "Traceback" not in done.stderr
