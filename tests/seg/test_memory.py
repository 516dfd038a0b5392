"""The estimate of memory: what a real training step saves, and what is said where memory is short."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute
from mimbench.engine.training.counting import Saved
from mimbench.seg.config import Heads, UPerNetConfig
from mimbench.seg.memory import advice, estimate, require_memory
from mimbench.seg.model.build import build_segmenter

CONFIG = UPerNetConfig(
    data="x",
    encoder=ViT(64, 4, 4, patch=16, image=64),
    heads=Heads(channels=32, aux_channels=32),
    image=128,
    batch=8,
    compute=Compute(precision="fp32", accumulate=2),
)


def test_the_estimate_is_what_a_step_saves() -> None:
    model = build_segmenter(CONFIG, 150).model.train()
    saved = Saved(model)
    batch = {
        "images": torch.zeros(4, 3, 128, 128, dtype=torch.uint8),
        "sizes": [(128, 128)] * 4,
        "labels": torch.zeros(4, 128, 128, dtype=torch.uint8),
    }
    with saved.counting():
        model(batch)
    assert estimate(CONFIG).activations == pytest.approx(saved.bytes, rel=0.1)
    model(batch)["loss"].backward()  # estimating leaves nothing behind that a real step would meet


def test_what_fits_is_said() -> None:
    needed = estimate(CONFIG)
    assert needed.images == 4
    assert advice(CONFIG, needed.total) is None
    again = estimate(replace(CONFIG, recompute=True))
    assert again.activations < 0.9 * needed.activations
    assert advice(CONFIG, again.total).endswith("it fits with recompute=true, with the same result")
    shares = estimate(replace(CONFIG, recompute=True, compute=replace(CONFIG.compute, shard=True)), world=2)
    assert shares.total < estimate(replace(CONFIG, recompute=True), world=2).total
    assert "recompute=true compute.shard=true, with the same result" in advice(CONFIG, shares.total, world=2)
    parts = replace(CONFIG, compute=replace(CONFIG.compute, accumulate=4), recompute=True)
    found = advice(CONFIG, estimate(parts).total)
    assert "compute.accumulate=4 recompute=true, but batch norm then sees fewer images" in found
    with pytest.raises(ValueError, match=r"too little memory: .*use more GPUs or a smaller image"):
        require_memory(CONFIG, CONFIG.encoder, 1, 0)
    require_memory(replace(CONFIG, steps=0, checkpoint="segmenter.pth"), CONFIG.encoder, 1, 0)
    with pytest.raises(ValueError, match="must be a multiple of processes"):
        estimate(CONFIG, world=3)


def test_the_papers_batch_is_counted_without_a_gpu() -> None:
    """Two images of 512 pixels on each of 8 GPUs took 9.96 GB in mmsegmentation's fp16 run (its README)."""
    config = UPerNetConfig(data="x", encoder=SIZES["B"], compute=Compute(precision="fp16"))
    needed = estimate(config, world=8)
    assert needed.images == 2
    assert 5e9 < needed.total < 15e9
