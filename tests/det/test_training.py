"""Twenty training steps against detectron2's: what golden_training.py wrote down. Everything in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mimbench.backbones.config import ViT
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.optim import learning_rate, optimizer
from tests.det.tiny import batch, fill, fixed_permutation, tiny_detector

GOLDEN = json.loads(Path(__file__).with_name("golden_training.json").read_text())
CONFIG = MaskRCNNConfig(
    data="coco",
    encoder=ViT(32, 4, 4, patch=8, image=64),
    image=128,
    steps=20,
    batch=3,
    lr=2e-4,
    warmup=5.0,
    milestones=(12, 17),
    layer_decay=0.7,
    weight_decay=0.1,
)


def test_twenty_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", fixed_permutation)
    model = tiny_detector(True)
    fill(model)
    model.double().train()
    adamw = optimizer(model, CONFIG, depth=4)
    found = []
    for step in range(CONFIG.steps):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(CONFIG, step) * group["lr_scale"]
        losses = model(batch())
        adamw.zero_grad()
        losses["loss"].backward()
        adamw.step()
        found.append({name: value.item() for name, value in losses.items() if name != "loss"})
    assert len(GOLDEN) == len(found)
    for ours, theirs in zip(found, GOLDEN, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert sum(GOLDEN[-1].values()) < 0.9 * sum(GOLDEN[0].values())
