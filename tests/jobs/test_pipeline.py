"""A study from pretraining to evaluation through the real command, with real training, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.store import runs_root
from tests.command import mimbench

pytestmark = pytest.mark.slow
STUDY = """
from mimbench.jobs.studies.study import Run, Study

def study():
    small = ("warmup_epochs=0.5", "batch=20", "epochs=3", "monitor.images=0", "compute.save_every=5")
    first = Run("pretrain/crossmae_handwritten", small, label="pretrain")
    return Study("small", [first, Run("cls/knn_handwritten", ("neighbours=5", "k=5"), first, "knn")])
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study's file, and data for it."""
    data = make_handwritten(tmp_path / "digits", 0, Sizes(60, 20, coco_train=8, coco_val=8))
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(data))
    file = tmp_path / "small.py"
    file.write_text(STUDY)
    return file


def _counts(*arguments: str | Path) -> dict[str, int]:
    done = mimbench("plan", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)["counts"]
    return counts


def test_plan_submit_and_evaluations_on_the_way(study: Path) -> None:
    on_the_way = (study, "--at", "every=1")
    assert _counts(*on_the_way) == {"new": 4}
    done = mimbench("submit", *on_the_way, "--slots", "2")
    assert done.returncode == 0, done.stderr
    assert "knn, epoch 2: done, knn_top1 " in done.stderr
    assert _counts(*on_the_way) == {"done": 4}
    assert _counts(study) == {"done": 2, "orphaned": 2}
    runs = [RunDir(file.parent) for file in runs_root().glob("cls/*/run.json")]
    results = [run.read_result() or {} for run in runs]
    assert len({result["checkpoint"]["hash"] for result in results}) == 3, "three encoders were evaluated"
    rows = json.loads(mimbench("table", "--json").stdout)
    assert len(rows) == 3
    assert sum("epoch=" in row["recipe"] for row in rows) == 2
    [made] = runs_root().glob("pretrain/*/encoder.safetensors")
    assert _counts(study, "--from", f"pretrained={made}") == {"done": 1, "orphaned": 3}, "its own encoder, as a file"
    copy = study.parent / "copy.safetensors"
    copy.write_bytes(made.read_bytes())
    assert _counts(study, "--from", f"pretrained={copy}")["new"] == 1, "a file from elsewhere goes by its content"
    again = mimbench("submit", *on_the_way, "--json")
    assert [line["state"] for line in json.loads(again.stdout)] == ["done"] * 4
    assert [len(run.attempts()) for run in runs] == [1] * 3
    bad = mimbench("submit", study, "cls.pool=cls", "cls.image=63")
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr, "one line each, as from `mimbench run`"
