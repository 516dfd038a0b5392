"""What the doctor sees."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mimbench.engine.data.datasets import add
from mimbench.jobs.local import doctor


@pytest.fixture(scope="module")
def seen() -> list[doctor.Check]:
    """One examination of this machine."""
    return list(doctor.examine())


def test_it_looks_at_everything(seen: list[doctor.Check]) -> None:
    names = {check.what for check in seen}
    wanted = {
        "python",
        "packages",
        "opencv",
        "cpu",
        "runs",
        "cache",
        "shared memory",
        "data handwritten",
        "slurm",
        "detectron2",
    }
    assert wanted <= names
    assert any(check.what.startswith("device") and "compute.precision=auto means" in check.found for check in seen)
    assert all(check.verdict != "problem" for check in seen), "the tests run here, so nothing essential is missing"


def test_json_and_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen: list[doctor.Check]
) -> None:
    checks = [*seen, doctor.Check("disk", "problem", "full", "free disk space")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert doctor.show(as_json=True) == 1
    assert json.loads(capsys.readouterr().out)[-1] == {
        "what": "disk", "verdict": "problem", "found": "full", "remedy": "free disk space",
    }  # fmt: skip
    assert doctor.show(as_json=False) == 1
    text = capsys.readouterr().out
    assert "! disk" in text
    assert "-> free disk space" in text
    monkeypatch.setattr(doctor, "examine", lambda: iter(seen))
    assert doctor.show(as_json=False) == 0


def test_what_is_wrong_comes_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    add("gone", gone)
    gone.rmdir()
    [check] = [check for check in doctor._data_sets() if check.what == "data gone"]
    assert (check.verdict, check.remedy) == ("note", "mimbench data add gone PATH")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6, total=64 * 2**20))
    assert {check.verdict for check in doctor._disks()} == {"note"}
    assert "--shm-size" in doctor._shared_memory().remedy
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if a library it needs were missing
    check = doctor._opencv()
    assert (check.verdict, "libgl1" in check.remedy) == ("problem", True)


@pytest.mark.parametrize(
    ("answer", "verdict", "found"),
    [
        ("echo slurm 22.05.8", "ok", "slurm 22.05.8"),
        ("echo no configuration >&2; exit 1", "note", "installed, but it reports: no configuration"),
    ],
)
def test_a_slurm_that_does_not_answer_is_not_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, verdict: str, found: str
) -> None:
    for name in ("sbatch", "sinfo"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check = doctor._slurm()
    assert (check.verdict, check.found) == (verdict, found)
    (tmp_path / "sinfo").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._slurm().found == "not on this machine"
