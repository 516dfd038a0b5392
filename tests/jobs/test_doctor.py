"""What the doctor sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.datasets import add
from jobs import doctor


@pytest.fixture(scope="module")
def seen() -> list[doctor.Check]:
    """One examination of this machine."""
    return list(doctor.examine())


def test_it_looks_at_everything(seen: list[doctor.Check]) -> None:
    names = {check.what for check in seen}
    wanted = {"python", "packages", "cpu", "runs", "cache", "shared memory", "data handwritten", "slurm", "detectron2"}
    assert wanted <= names
    assert any(check.what.startswith("device") and "compute.precision=auto means" in check.found for check in seen)
    assert all(check.verdict != "problem" for check in seen), "the tests run here, so nothing essential is missing"


def test_json_and_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen: list[doctor.Check]
) -> None:
    checks = [*seen, doctor.Check("disk", "problem", "full", "free some")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert doctor.show(as_json=True) == 1
    assert json.loads(capsys.readouterr().out)[-1] == {
        "what": "disk", "verdict": "problem", "found": "full", "remedy": "free some",
    }  # fmt: skip
    assert doctor.show(as_json=False) == 1
    text = capsys.readouterr().out
    assert "! disk" in text
    assert "-> free some" in text
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
