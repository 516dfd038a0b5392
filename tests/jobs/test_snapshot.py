"""The code as of submission: complete or not used, and the checkout left as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mimbench.jobs.slurm.snapshot import MARKER, snapshot


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package, an ignored file and a commit."""
    top = tmp_path / "check out"
    (top / "jobs").mkdir(parents=True)
    (top / "jobs" / "a.py").write_text("a = 1\n")
    (top / "notes.md").write_text("not code\n")
    (top / ".gitignore").write_text("*.pyc\n")
    for command in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q", "-m", "first"),
    ):
        subprocess.run(["git", "-C", str(top), *command], check=True)
    return top


def _status(top: Path) -> str:
    command = ["git", "-C", str(top), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_editing_afterwards_changes_nothing(checkout: Path, tmp_path: Path) -> None:
    (checkout / "jobs" / "a.py").write_text("a = 2\n")
    (checkout / "jobs" / "new.py").write_text("b = 1\n")
    (checkout / "jobs" / "old.pyc").write_text("ignored")
    before = _status(checkout)
    found = snapshot(tmp_path / "runs", checkout)
    place = Path(found["snapshot"])
    (checkout / "jobs" / "a.py").write_text("a = 3\n")
    assert (place / "jobs" / "a.py").read_text() == "a = 2\n"
    assert (place / "jobs" / "new.py").read_text() == "b = 1\n"
    assert not (place / "jobs" / "old.pyc").exists()
    assert not (place / "notes.md").exists()
    assert found["dirty"]
    assert "+a = 2" in (place / "changes.diff").read_text()
    assert before == _status(checkout), "index and files of the checkout are as they were"
    objects = subprocess.run(
        ["git", "-C", str(checkout), "cat-file", "-e", found["tree"]], capture_output=True, check=False
    )
    assert objects.returncode != 0, "nothing was added to its objects"


def test_unchanged_code_is_copied_once_and_half_a_copy_not_used(checkout: Path, tmp_path: Path) -> None:
    first = snapshot(tmp_path / "runs", checkout)
    place = Path(first["snapshot"])
    assert not first["dirty"]
    stamp = (place / MARKER).stat().st_mtime_ns
    assert snapshot(tmp_path / "runs", checkout) == first
    assert (place / MARKER).stat().st_mtime_ns == stamp
    (place / MARKER).unlink()
    (place / "jobs" / "a.py").unlink()
    snapshot(tmp_path / "runs", checkout)
    assert (place / "jobs" / "a.py").exists()
    assert (place / MARKER).exists()


def test_an_installed_package_without_git_is_copied(tmp_path: Path) -> None:
    top = tmp_path / "site-packages"
    package = top / "mimbench" / "jobs"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__pycache__" / "a.pyc").write_text("compiled")
    (package / "a.py").write_text("a = 1\n")
    (top / "torch").mkdir()
    first = snapshot(tmp_path / "runs", top)
    place = Path(first["snapshot"])
    (package / "a.py").write_text("a = 2\n")
    assert sorted(path.name for path in place.rglob("*")) == ["a.py", "jobs", "mimbench", MARKER]
    assert (place / "mimbench" / "jobs" / "a.py").read_text() == "a = 1\n"
    second = snapshot(tmp_path / "runs", top)
    assert (Path(second["snapshot"]) / "mimbench" / "jobs" / "a.py").read_text() == "a = 2\n"
    assert first["version"] == second["version"] and first["tree"] != second["tree"]
    assert snapshot(tmp_path / "runs", top) == second, "unchanged code is copied once"
    assert snapshot(tmp_path / "elsewhere", place) == first, "inside a job its code is already a snapshot"


def test_a_snapshot_stands_for_itself(checkout: Path, tmp_path: Path) -> None:
    first = snapshot(tmp_path / "runs", checkout)
    assert snapshot(tmp_path / "elsewhere", Path(first["snapshot"])) == first
