"""The best weights outlive a kill at any moment; two processes measure what one does, image for image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.backbones.classifier_file import load_classifier, read_info
from mimbench.cls.data.imagenet import imagenet_r_wnids

PROGRAM = Path(__file__).with_name("killed_finetune.py")
ROOT = PROGRAM.parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The program's directory, and what it prints."""
    directory = tmp_path_factory.mktemp("killed")
    data = _colours(directory / "data")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), str(directory), str(data)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, json.loads(done.stdout.splitlines()[-1])


def _colours(root: Path) -> Path:
    """Three classes that a very faint colour tells apart: 24 images each to train on, 7 to validate on, 21 in all."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 7)):
        for channel, name in enumerate(imagenet_r_wnids()[:3]):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 3
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_best_and_last_are_the_same_after_a_kill(told: tuple[Path, dict[str, Any]]) -> None:
    outcomes = dict(told[1]["kills"])
    whole = outcomes.pop("never")
    assert whole["kills"] == 0
    assert len(outcomes) == 4
    for moment, outcome in outcomes.items():
        assert outcome["kills"] == 1, moment
        assert {**outcome, "kills": 0} == whole, moment


def test_the_best_is_the_best_of_all_evaluations(told: tuple[Path, dict[str, Any]]) -> None:
    directory, found = told
    lines = [json.loads(line) for line in (directory / "never" / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["finetune_top1"] for line in lines if "finetune_top1" in line}
    assert len(measured) == 6
    best = max(measured.values())
    whole = found["kills"]["never"]
    assert whole["metrics"]["finetune_best_top1"] == best
    assert whole["metrics"]["finetune_top1"] == measured[36]
    assert best > measured[36], "the data and the rate are chosen so that the last is not the best"
    step = max(step for step, value in measured.items() if value == best)
    assert whole["facts"]["best_epoch"] == step / 6
    kept = read_info(directory / "never" / "classifier-best.safetensors")
    assert (kept.step, kept.metrics["finetune_top1"]) == (step, best)
    model, last = load_classifier(directory / "never" / "classifier.safetensors")
    assert (last.step, last.metrics["finetune_top1"], last.outputs) == (36, measured[36], 3)
    assert last.classes == tuple(sorted(imagenet_r_wnids()[:3]))
    assert found["shared"]["1"]["val"]["metrics"]["val_top1"] == best  # of the weights in the file
    assert not model.training


@pytest.mark.parametrize("what", ["val", "imagenet-r"])
def test_two_processes_measure_what_one_does(told: tuple[Path, dict[str, Any]], what: str) -> None:
    one, two = (told[1]["shared"][world][what] for world in ("1", "2"))
    loss = one["metrics"].pop("val_loss", 0.0), two["metrics"].pop("val_loss", 0.0)
    assert loss[0] == pytest.approx(loss[1], rel=1e-6)
    assert one["metrics"] == two["metrics"]
    hits = next(iter(one["metrics"].values())) * 21 / 100
    assert hits == pytest.approx(round(hits))


def test_two_processes_save_the_predictions_of_one(told: tuple[Path, dict[str, Any]]) -> None:
    from mimbench.jobs.runs.predictions import compare, read

    files = [told[0] / f"by-{world}" / "val" for world in (1, 2)]
    assert compare(*map(read, files)).changed == []


def test_two_processes_train_and_leave_one_classifier(told: tuple[Path, dict[str, Any]]) -> None:
    one, two = (told[1]["shared"][world]["training"]["metrics"] for world in ("1", "2"))
    assert one.keys() == two.keys()
    assert (told[0] / "by-2" / "training" / "classifier.safetensors").is_file()
    kept = read_info(told[0] / "by-2" / "training" / "classifier-best.safetensors")
    assert kept.metrics["finetune_top1"] == two["finetune_best_top1"]


def test_shares_of_the_weights_train_as_copies(told: tuple[Path, dict[str, Any]]) -> None:
    from safetensors.torch import load_file

    copies, shares = (told[1]["shared"][name]["metrics"] for name in ("copies", "shares"))
    assert shares == pytest.approx(copies, rel=1e-4)
    for name in ("classifier", "classifier-best"):
        files = [load_file(told[0] / division / f"{name}.safetensors") for division in ("copies", "shares")]
        assert files[0].keys() == files[1].keys()
        for weight, value in files[0].items():
            if not weight.endswith("qkv.bias"):  # no gradient for those of keys: Adam makes steps of rounding
                torch.testing.assert_close(files[1][weight], value, rtol=1e-3, atol=1e-5, msg=weight)
