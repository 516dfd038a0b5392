"""Checkpoints: whole or not there, checked, and opened without running code."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.engine.training.state import load_state, newest_valid, prune, save_state, state_path


def _state(number: float) -> dict[str, Any]:
    return {"step": 3, "model": {"w": torch.full((1000,), number)}, "betas": (0.9, 0.95), "none": None}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "a.pt", _state(2.5))
    state = load_state(tmp_path / "a.pt")
    assert torch.equal(state["model"]["w"], torch.full((1000,), 2.5))
    assert state["betas"] == (0.9, 0.95)


def test_damaged_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20, 30, 40):
        save_state(state_path(tmp_path, step), _state(step))
    torn, flipped = state_path(tmp_path, 40), state_path(tmp_path, 30)
    torn.write_bytes(torn.read_bytes()[:-100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of the tensor
    flipped.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert newest_valid(tmp_path) == state_path(tmp_path, 20)
    assert "step-00000040.pt" in caplog.text
    assert "step-00000030.pt: the checksum" in caplog.text


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "checkpoints") is None


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        save_state(state_path(tmp_path, step), _state(step))
    prune(tmp_path, keep=2)
    assert sorted(tmp_path.iterdir()) == [state_path(tmp_path, 20), state_path(tmp_path, 100)]


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo harm",)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"step": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt is not a training state") as caught:
        load_state(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt is not a training state"):
        load_state(tmp_path / "a.pt")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    first, second = state_path(small_disk, 1), state_path(small_disk, 2)
    save_state(first, {"w": torch.zeros(150_000)})
    with pytest.raises(OSError) as caught:
        save_state(second, {"w": torch.zeros(150_000)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(second)
    assert list(small_disk.iterdir()) == [first]
    assert newest_valid(small_disk) == first


def test_a_writer_that_fails_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without root: the disk is full at the third write."""
    from mimbench.engine.training.state import _Sink

    original = _Sink.write
    writes = []

    def write(sink: _Sink, data: bytes) -> int:
        writes.append(data)
        if len(writes) == 3:
            sink.error = OSError(errno.ENOSPC, "No space left on device")
        return original(sink, data)

    save_state(tmp_path / "a.pt", _state(1))
    monkeypatch.setattr(_Sink, "write", write)
    with pytest.raises(OSError, match=r"No space left on device.*a\.pt"):
        save_state(tmp_path / "a.pt", _state(2))
    assert load_state(tmp_path / "a.pt")["model"]["w"][0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
