"""A file is the old one or the new one, whatever interrupts its writer."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mimbench.engine.run.atomic import claim_json, replacing, sweep, sweep_file, write_json, write_text, write_with


def test_writes_and_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "a b.json"
    write_json(file, {"x": [1, None]})
    write_json(file, {"x": 2})
    assert json.loads(file.read_text()) == {"x": 2}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_writer_that_fails_changes_nothing(tmp_path: Path, fault: BaseException) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(type(fault)), replacing(file) as temporary:
        temporary.write_text("ne")
        raise fault
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "hidden.tmp")

    with pytest.raises(OSError, match=r"No space left on device: .*a.txt'") as caught:
        write_with(tmp_path / "a.txt", full)
    assert caught.value.errno == errno.ENOSPC


def test_an_oserror_in_words_keeps_them(tmp_path: Path) -> None:
    def worded(_: Path) -> None:
        raise OSError("cannot write mode F as PNG")

    with pytest.raises(OSError, match=r"a.png: cannot write mode F as PNG"):
        write_with(tmp_path / "a.png", worded)


def test_a_library_that_hides_a_full_disk_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def like_torch(_: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with pytest.raises(RuntimeError):
        write_with(tmp_path / "a.pth", like_torch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(OSError, match=r"No space left on device: .*a.pth"):
        write_with(tmp_path / "a.pth", like_torch)


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    file = small_disk / "a.txt"
    write_text(file, "old")
    with pytest.raises(OSError, match="No space left on device"):
        write_text(file, "new" * 50_000)
    assert file.read_text() == "old"
    assert list(small_disk.iterdir()) == [file]


def _claim(path: Path, number: int, queue: multiprocessing.Queue[int]) -> None:
    try:
        claim_json(path, number)
        queue.put(number)
    except FileExistsError:
        pass


def test_of_many_claims_one_succeeds(tmp_path: Path) -> None:
    queue: multiprocessing.Queue[int] = multiprocessing.Queue()
    file = tmp_path / "1.json"
    claimants = [multiprocessing.Process(target=_claim, args=(file, number, queue)) for number in range(8)]
    for claimant in claimants:
        claimant.start()
    for claimant in claimants:
        claimant.join()
    winner = queue.get(timeout=5)
    assert queue.empty()
    assert json.loads(file.read_text()) == winner
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from mimbench.engine.run.atomic import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    file = tmp_path / "checkpoints" / "1.pth"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=root, check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert len(list(file.parent.iterdir())) == 1
    assert not file.exists()
    sweep(tmp_path)
    assert not list(file.parent.iterdir())


def test_writers_with_the_same_process_number_do_not_share_a_file(tmp_path: Path) -> None:
    """On another host, or in a container, a process may have the same number."""
    file = tmp_path / "a.txt"
    with replacing(file) as mine:
        mine.write_text("mine")
        with replacing(file) as other:
            other.write_text("another")
        assert mine.read_text() == "mine"
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_what_killed_writers_of_a_file_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    file = tmp_path / "a[1].json"
    old, young, other = (tmp_path / name for name in (".a[1].json.7.tmp", ".a[1].json.8-ab.tmp", ".a1.json.7.tmp"))
    for leftover in (old, young, other):
        leftover.write_text("half")
    for leftover in (old, other):
        os.utime(leftover, (1e9, 1e9))
    sweep_file(file, 3600)
    assert sorted(tmp_path.iterdir()) == sorted([young, other])
