"""Two runs compared image by image."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mimbench.engine.run.result import PREDICTIONS
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.intervals import resampled
from mimbench.jobs.runs.predictions import CHANGES, Saved, compare, read
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies.study import Run
from tests.jobs.runs import Runs

CLASSES = ["cat", "dog", "owl"]


def _write(path: Path, guess: list[int], label: list[int], names: list[str] | None = None) -> Path:
    about = {"schema": 1, "data": "pets", "names": names or [f"{i}.png" for i in range(len(label))], "classes": CLASSES}
    others = (np.array(guess)[:, None] + np.arange(3)) % 3
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"label": np.array(label), "top5": others.astype(np.int32)}, str(path), {PREDICTIONS: json.dumps(about)})
    return path


def test_every_change_is_found(tmp_path: Path) -> None:
    label = [0, 0, 1, 1, 2, 2]
    before = read(_write(tmp_path / "a.safetensors", [0, 0, 2, 1, 0, 0], label))
    after = read(_write(tmp_path / "b.safetensors", [0, 1, 1, 1, 1, 0], label))
    found = compare(before, after)
    assert found.right == (3, 3)
    assert [(one.image, one.change, one.label, one.before, one.after) for one in found.changed] == [
        ("1.png", "right to wrong", "cat", "cat", "dog"),
        ("2.png", "wrong to right", "dog", "owl", "dog"),
        ("4.png", "wrong otherwise", "owl", "cat", "dog"),
    ]
    assert found.p_value == 1


def test_mcnemars_test_is_the_exact_one() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 400)
    guess = [np.where(generator.random(400) < share, label, (label + 1) % 3) for share in (0.6, 0.75)]
    names = [str(number) for number in range(400)]
    before, after = (Saved("run", names, CLASSES, label, guesses) for guesses in guess)
    found = compare(before, after)
    lost = int(((guess[0] == label) & (guess[1] != label)).sum())
    won = int(((guess[0] != label) & (guess[1] == label)).sum())
    assert (found.count("right to wrong"), found.count("wrong to right")) == (lost, won)
    assert lost < won
    expected = 2 * sum(comb(lost + won, count) for count in range(lost + 1)) / 2 ** (lost + won)
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert compare(before, before).p_value == 1


def test_the_command_prints_and_gives_json(tmp_path: Path) -> None:
    label = [0] * 40
    for run, guess in (("a", [1] * 30 + [0] * 10), ("b", [0] * 40)):
        _write(tmp_path / run / "predictions.safetensors", guess, label)
    runs = [str(tmp_path / run) for run in "ab"]
    done = CliRunner().invoke(app, ["compare-predictions", *runs])
    assert done.exit_code == 0
    assert "40 images; top-1 25.00 -> 100.00" in done.stdout
    assert "30 wrong to right" in done.stdout
    assert "and 20 more (--json lists all)" in done.stdout
    assert "not significant" not in done.stdout
    told = json.loads(CliRunner().invoke(app, ["compare-predictions", *runs, "--json"]).stdout)
    assert told["counts"] == dict(zip(CHANGES, (0, 30, 0), strict=True))
    assert len(told["changed"]) == 30
    assert told["top1"] == [25, 100]


def test_intervals_over_images_stand_beside_the_seeds(tmp_path: Path) -> None:
    """The bootstrap of a mean of zeros and ones is binomial: checked against images resampled one by one."""
    right, images = 300, 400
    low, high = resampled(right, images)
    answers = np.repeat([1.0, 0.0], [right, images - right])
    generator = np.random.default_rng(1)
    plain = 100 * generator.choice(answers, (4000, images)).mean(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.4)
    runs = Runs(runs_root())
    made = [
        runs.evaluate("cls/linear_handwritten", {"linear_top1": top1}, seed=seed) for seed, top1 in enumerate((75, 77))
    ]
    _write(made[0].predictions, [0] * right + [1] * (images - right), [0] * images)
    done = CliRunner().invoke(app, ["intervals", made[0].path.name])
    assert done.exit_code == 0, done.output
    assert "linear_top1 75.00" in done.stdout
    assert f"other images   {low:.1f} to {high:.1f}" in done.stdout
    assert "other seeds    76.0 ± 1.4" in done.stdout
    [one] = json.loads(CliRunner().invoke(app, ["intervals", made[0].path.name, "--json"]).stdout)
    assert (one["images"], one["seeds"]) == (400, [75, 77])
    assert CliRunner().invoke(app, ["intervals", made[1].path.name]).exit_code == 1


def test_a_run_goes_by_the_name_that_status_gives_it(tmp_path: Path) -> None:
    made = [Run("cls/knn_handwritten", (f"seed={seed}",)).directory(runs_root()) for seed in (0, 1)]
    for run in made:
        _write(run.predictions, [0, 1], [0, 1])
    names = [f"cls/{run.path.name}" for run in made]
    done = CliRunner().invoke(app, ["compare-predictions", *names])
    assert (done.exit_code, "2 images; top-1 100.00 -> 100.00" in done.stdout) == (0, True)
    missing = CliRunner().invoke(app, ["compare-predictions", names[0], str(tmp_path / "none")])
    assert "none does not exist, and no run under" in missing.stderr


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"names": ["0.png", "2.png"]}, r"different images \(2 and 2\): 1.png is in only one"),
        ({"names": ["1.png", "0.png"]}, "the order differs"),
        ({"label": [0, 2]}, "have different labels, first for 1.png"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: dict[str, list[int]], complaint: str) -> None:
    first = _write(tmp_path / "a.safetensors", [0, 1], [0, 1])
    second = _write(tmp_path / "b.safetensors", **{"guess": [0, 1], "label": [0, 1], **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=complaint):
        compare(read(first), read(second))


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="save_predictions=true"):
        read(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a predictions file of mimbench"):
        read(tmp_path / "x.safetensors")
