"""Checkpoints are written by a thread: the run goes on meanwhile, waits where it must, and fails if the write fails."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mimbench.engine.run.config import Compute
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.saving import Copier, Saver
from mimbench.engine.training.state import _Sink, load_state, save_state, state_path, steps_saved
from mimbench.engine.training.train import Training, train

Make = Callable[..., Training]


def _held_back(monkeypatch: pytest.MonkeyPatch, free: threading.Event) -> None:
    """Let writes wait for `free`; 20 seconds without it are an error."""
    write = _Sink.write

    def waiting(sink: _Sink, data: bytes) -> int:
        assert free.wait(20), "nobody went on"
        return write(sink, data)

    monkeypatch.setattr(_Sink, "write", waiting)


def _until(done: Callable[[], bool]) -> None:
    """Wait until `done`, at most 20 seconds."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_run_goes_on_while_a_checkpoint_is_written(
    make_training: Make, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, on_disk = threading.Event(), []

    def before_step(index: int) -> None:
        if index == 16:  # the checkpoint of step 10 is being written
            on_disk.extend(steps_saved(run_dir.checkpoints))
            free.set()

    _held_back(monkeypatch, free)
    train(run_dir, make_training(steps=20, before_step=before_step))
    assert on_disk == []
    assert steps_saved(run_dir.checkpoints) == [20, 10]
    states = [load_state(state_path(run_dir.checkpoints, step))["stepper"]["optimizer"]["state"] for step in (10, 20)]
    assert [float(state[0]["step"]) for state in states] == [10, 20]  # as it was then, not when it was written


def test_an_interrupted_run_waits_for_its_checkpoint(
    make_training: Make, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()

    def before_step(index: int) -> None:
        if index == 13:
            threading.Timer(0.3, free.set).start()
            raise KeyboardInterrupt  # as SLURM's warning does

    _held_back(monkeypatch, free)
    with pytest.raises(KeyboardInterrupt):
        train(run_dir, make_training(steps=40, before_step=before_step))
    assert steps_saved(run_dir.checkpoints) == [10]
    assert not list(run_dir.path.rglob("*.tmp"))


def test_a_failed_write_is_the_error_of_the_run(make_training: Make, run_dir: RunDir) -> None:
    reached = []

    def before_step(index: int) -> None:
        reached.append(index)
        if index == 12:
            _until(lambda: steps_saved(run_dir.checkpoints) == [10])
            run_dir.checkpoints.rename(run_dir.path / "moved")
            run_dir.checkpoints.write_text("in the way")
        if index > 20:  # the write of step 20 has failed by now, or will in a moment
            time.sleep(0.2)

    with pytest.raises(OSError) as caught:
        train(run_dir, make_training(steps=1000, before_step=before_step))
    assert Path(caught.value.filename).is_relative_to(run_dir.checkpoints)
    assert reached[-1] < 30
    assert [path.name for path in (run_dir.path / "moved").iterdir()] == ["step-00000010.pt"]


def test_saved_by_minutes_too(make_training: Make, run_dir: RunDir, compute: Compute) -> None:
    often = replace(compute, save_every=1000, save_minutes=1e-9, keep=10)
    train(run_dir, make_training(steps=20, compute=often))
    assert steps_saved(run_dir.checkpoints) == [20, 15, 10, 5]  # at every line of metrics
    other = RunDir.create(run_dir.path.parent / "other", "", run_dir.read_about())
    train(other, make_training(steps=20, compute=replace(often, save_minutes=60)))
    assert steps_saved(other.checkpoints) == [20]
    with pytest.raises(ValueError, match="save_minutes=0 must be positive"):
        replace(compute, save_minutes=0)


def test_a_copy_is_the_same_state(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.extra = model[0]  # type: ignore[assignment]  # the same weights under a second name
    state = {"model": model.state_dict(), "list": [torch.arange(3)], "pair": (0.9, 7), "none": None}
    copied, arrived = Copier().copy(state)
    arrived()
    for name, one in (("a.pt", state), ("b.pt", copied)):
        save_state(tmp_path / name, one)
    first, second = (load_state(tmp_path / name) for name in ("a.pt", "b.pt"))
    counts = [len(zipfile.ZipFile(tmp_path / name).namelist()) for name in ("a.pt", "b.pt")]
    assert counts[0] == counts[1]  # each tensor once
    assert first["model"]._metadata == second["model"]._metadata  # the versions of modules
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(copied["model"]["0.weight"], first["model"]["0.weight"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    saver = Saver(keep=2)
    for step in (1, 2, 3):
        saver.save(state_path(tmp_path, step), {"step": step})
    saver.wait()
    saver.check()
    assert steps_saved(tmp_path) == [3, 2]


def test_a_state_is_read_where_it_is_used_and_the_file_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_state(path, {"w": torch.arange(1000.0)})
    before = path.read_bytes()
    weight: Tensor = load_state(path)["w"]
    weight += 1
    path.unlink()  # as pruning does
    assert torch.equal(weight, torch.arange(1000.0) + 1)
    assert path.parent.exists()
    save_state(path, {"w": torch.arange(1000.0)})
    assert path.read_bytes() == before
