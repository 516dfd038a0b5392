"""One evaluation in several seeds: which runs that means, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench.backbones.config import SIZES
from mimbench.engine.data.datasets import HANDWRITTEN
from mimbench.jobs.cli.main import app
from mimbench.jobs.studies.evaluate import Request, evaluation
from mimbench.jobs.studies.seeds import Spread, asked_for, seeded, study_of, to_json, to_text
from mimbench.jobs.studies.study import Run, Study
from tests.jobs.conftest import Bench

FILE = Path("/x/encoder.safetensors")


def test_every_protocol_runs_once_for_each_seed_but_those_without_chance() -> None:
    study = evaluation(FILE, SIZES["B"], Request(("knn", "linear", "finetune"), overrides=("linear.seed=5",)))
    runs = {run.name: run for run in seeded(study, 3).runs}
    assert list(runs) == [
        "knn",
        *(f"linear, seed {seed}" for seed in (5, 6, 7)),
        *(f"finetune, seed {seed}" for seed in (0, 1, 2)),
    ]
    assert runs["linear, seed 6"].overrides == ("seed=5", "seed=6")
    assert all(run.checkpoint == FILE for run in runs.values())
    assert seeded(study, 1) is study


def test_from_random_weights_every_seed_counts() -> None:
    assert len(study_of("cls/knn", [f"data={HANDWRITTEN}"], 2).runs) == 2
    assert len(study_of("cls/knn", [f"data={HANDWRITTEN}", "checkpoint=/x/e.pth"], 2).runs) == 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: study_of("cls/nothing", [], 2), "unknown recipe 'cls/nothing'"),
        (lambda: study_of("cls/classify", [], 2), "cls/classify has no seed"),
        (lambda: seeded(_chain(), 2), "k-NN needs pretrain"),
    ],
)
def test_what_has_no_seeds_is_refused(make: Callable[[], Study], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


def test_seeds_among_the_settings_are_no_setting_of_a_run() -> None:
    assert asked_for(["seed=4", "seeds=3", "batch=8"]) == (["seed=4", "batch=8"], 3)
    assert asked_for(["seed=4"], 2) == (["seed=4"], 2)
    for text in ("0", "many", "-1", ""):
        with pytest.raises(ValueError, match=f"seeds={text} must be a whole number of at least 1"):
            asked_for([f"seeds={text}"])


def _chain() -> Study:
    pretrain = Run("pretrain/mae_handwritten", label="pretrain")
    return Study("chain", [pretrain, Run("cls/knn_handwritten", checkpoint=pretrain, label="k-NN")])


def test_mean_and_deviation_are_those_of_mae_readme() -> None:
    spread = Spread((83.63, 83.66, 83.52, 83.46), "finetune", "finetune_top1")
    assert to_text([spread]) == "finetune_top1  83.5675 ± 0.094 over 4 seeds"
    both = to_text([spread, replace(spread, metric="finetune_top5"), replace(spread, protocol="linear")])
    lines = [line.split("  ")[0] for line in both.splitlines()]
    assert lines == ["finetune", "finetune_top1", "finetune_top5", "", "linear", "finetune_top1"]
    assert to_json([spread])[0]["mean"] == pytest.approx(83.57, abs=0.005)
    assert to_json([Spread((50.0,), "knn", "knn_top1")])[0]["deviation"] is None


@pytest.mark.parametrize("seeds", [["--seeds", "2"], ["seeds=2"]])
def test_the_command_makes_the_runs_and_tells_the_spread(bench: Bench, images: Path, seeds: list[str]) -> None:
    done = CliRunner().invoke(app, ["run", "cls/knn", f"data={images}", *seeds, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert [run["state"] for run in told["runs"]] == ["done", "done"]
    assert told["over_seeds"] == [
        {"protocol": "cls/knn", "metric": "knn_top1", "values": [50.0, 50.0], "mean": 50.0, "deviation": 0.0}
    ]
    assert sorted(seed for seed, _, _ in bench.submitted) == [0, 1]
