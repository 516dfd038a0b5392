"""Which side waits: a loader that is slow, and a step that is."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mimbench.backbones.config import ViT
from mimbench.engine.data.images import RandomCrops
from mimbench.engine.run.config import Compute
from mimbench.jobs.cli.main import app
from mimbench.pretrain.config import CrossMAEConfig, Pretrain
from mimbench.pretrain.methods.crossmae import CrossMAE as Model
from mimbench.pretrain.throughput import Pace, measure

TINY = Pretrain(
    encoder=ViT(width=16, depth=1, heads=2, patch=4, image=16),
    method=CrossMAEConfig(depth=1, width=16, heads=2),
    batch=4096,
    compute=Compute(precision="fp32", workers=0, device="cpu"),
)


@pytest.fixture
def config(tmp_path: Path) -> Pretrain:
    folder = tmp_path / "images" / "train" / "class"
    folder.mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (20, 20 + index)).save(folder / f"{index}.png")
    return replace(TINY, data=str(tmp_path / "images"))


def _slow(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> None:
    work = getattr(owner, name)

    def later(*arguments: Any) -> Any:
        time.sleep(seconds)
        return work(*arguments)

    monkeypatch.setattr(owner, name, later)


def test_the_side_that_is_slow_is_the_bottleneck(config: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        _slow(patched, RandomCrops, "__getitem__", 0.2)
        starved = measure(config, 0.3)
    assert starved.starved
    assert starved.loader < 5.1
    assert (starved.workers, starved.batch, starved.device) == (0, 6, torch.device("cpu"))
    _slow(monkeypatch, Model, "forward", 1.0)
    fed = measure(config, 0.3)
    assert not fed.starved
    assert fed.step < 6.1


def test_doctor_says_so(config: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Pace(loader=100.0, step=200.0, workers=0, batch=16, device=torch.device("cpu"))
    monkeypatch.setattr("mimbench.pretrain.throughput.measure", lambda config, seconds: found)
    done = CliRunner().invoke(app, ["doctor", "--data", config.data, "--json"])
    last = json.loads(done.stdout)[-1]
    assert (last["what"], last["verdict"]) == (f"input {config.data}", "note")
    assert "0 loading processes load 100 img/s" in last["found"]
    assert last["found"].endswith("loading is the bottleneck")
    assert re.match(
        r"use compute.workers=auto \(\d+ for \d+ cores here\), or run `mimbench data shrink", last["remedy"]
    )
    found = replace(found, loader=1000.0)
    done = CliRunner().invoke(app, ["doctor", "--data", config.data, "--recipe", "pretrain/crossmae_handwritten"])
    assert "the model is the bottleneck, loading is 5.0 times as fast" in done.stdout
    done = CliRunner().invoke(app, ["doctor", "--data", config.data, "--recipe", "cls/knn"])
    assert done.exit_code == 1
    assert "--recipe cls/knn cannot be timed" in done.stderr
