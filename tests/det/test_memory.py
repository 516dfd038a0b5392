"""The estimate of memory: what a real training step saves, what needs less, and what is said where it is short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mimbench.backbones.config import ViT
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.memory import Estimate, advice, estimate, require_memory
from mimbench.det.model.build import from_scratch
from mimbench.det.model.masks import InstanceMasks
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.engine.run.config import Compute
from mimbench.engine.training.counting import Saved
from mimbench.engine.training.memory import estimate_of

MIB = 2**20


def _config(**changes) -> MaskRCNNConfig:
    config = MaskRCNNConfig(
        data="coco",
        encoder=ViT(64, 4, 4, patch=16, image=64),
        vitdet=ViTDetConfig(window=5, channels=32, drop_path=0.0),
        proposals=Proposals(anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0)),
        heads=Heads(samples=32, channels=32, fc=64),
        image=256,
        batch=4,
        steps=10,
        milestones=(),
        compute=Compute(precision="fp32", accumulate=2),
    )
    return replace(config, **changes)


def _measured(config: MaskRCNNConfig, images: int) -> int:
    """Bytes that a real forward pass with losses saves."""
    torch.manual_seed(0)
    model = from_scratch(config, 80, config.encoder, mean=IMAGENET_MEAN, std=IMAGENET_STD).train()
    corners = torch.tensor([[x, y, x + 60.0, y + 50] for x in (5, 90, 170) for y in (5, 90, 170)])
    masks = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in corners.double().tolist()]
    target = {"boxes": corners, "labels": torch.arange(9), "masks": InstanceMasks(masks)}
    batch = {
        "images": torch.zeros(images, 3, 256, 256),
        "sizes": [(256, 256)] * images,
        "targets": [target] * images,
    }
    saved = Saved(model)
    with saved.counting():
        model(batch)
    return saved.bytes


def test_the_estimate_is_what_a_step_saves() -> None:
    config = _config()
    estimated = estimate(config).activations
    assert estimated == pytest.approx(_measured(config, 2), rel=0.15)


def test_parts_and_recomputing_need_less() -> None:
    whole, parts, again = (
        estimate(_config(compute=Compute(accumulate=1))),
        estimate(_config(compute=Compute(accumulate=4))),
        estimate(_config(compute=Compute(accumulate=4), recompute=True)),
    )
    assert whole.activations > 3 * parts.activations
    assert again.activations < 0.9 * parts.activations
    assert (whole.images, parts.images) == (4, 1)
    assert whole.parameters == parts.parameters
    assert estimate(_config(), world=2).gradients == 2 * whole.gradients  # the sum of micro-batches, and buckets
    assert estimate(_config(compute=Compute(accumulate=1)), world=2).gradients == whole.gradients
    half = estimate(_config(compute=Compute(precision="bf16", accumulate=4))).activations
    assert half < 0.8 * estimate(_config(compute=Compute(precision="fp32", accumulate=4))).activations


def test_what_fits_is_said() -> None:
    config = _config(compute=Compute(accumulate=1))
    need, least = estimate(config).total, estimate(_config(compute=Compute(accumulate=4), recompute=True)).total
    assert advice(config, need) is None
    assert "it fits with compute.accumulate=2" in advice(config, need - MIB)
    assert "compute.accumulate=4 recompute=true" in advice(config, least)
    assert "a smaller image needs less memory" in advice(config, least // 2)
    with pytest.raises(ValueError, match=r"GPU has too little memory: about .* it fits with compute\.accumulate=2"):
        require_memory(config, config.encoder, 1, need - MIB)
    require_memory(config, config.encoder, 1, need)
    large = replace(config, image=1024)
    assert "image=640, as in det/mask_rcnn_vitdet_b_25ep_24gb_640px, needs" in advice(large, MIB)
    with pytest.raises(ValueError, match="multiple of processes"):
        estimate(config, world=3)


def test_what_fits_is_found_with_few_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full-size model each takes seconds."""
    asked: list[tuple[int, bool]] = []

    def counted(config: MaskRCNNConfig, world: int = 1) -> Estimate:
        asked.append((config.compute.accumulate, config.recompute))
        images = config.batch // config.compute.accumulate
        return Estimate(images, 0, 0, 0, images * (1 if config.recompute else 3) * MIB, config.recompute)

    monkeypatch.setattr("mimbench.det.memory.estimate", counted)
    config = _config(batch=64, compute=Compute(accumulate=1))
    for images, again in ((32, False), (8, False), (1, False), (2, True), (1, True)):
        del asked[:]
        free = counted(replace(config, compute=Compute(accumulate=64 // images), recompute=again)).total
        said = advice(config, free) or ""
        wanted = next(  # one after another, the plain ones first
            (parts, recompute)
            for recompute in (False, True)
            for parts in (1, 2, 4, 8, 16, 32, 64)
            if counted(replace(config, compute=Compute(accumulate=parts), recompute=recompute)).total <= free
        )
        assert (f"compute.accumulate={wanted[0]} " in said.replace(",", " ,")) == (wanted[0] > 1)
        assert ("recompute=true" in said) == wanted[1]
    del asked[:]
    assert "a smaller image needs less memory" in (advice(config, MIB) or "")
    assert asked == [(1, False), (64, False), (64, True)]


def test_a_detector_evaluated_as_it_is_needs_no_room_for_training() -> None:
    require_memory(_config(steps=0, checkpoint="detector.pth"), _config().encoder, 1, free=MIB)


def test_a_share_of_everything_and_what_is_gathered_beside_it() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(10, 10, bias=False) for _ in range(8))  # of 400 bytes each
    model.head = nn.Linear(10, 2, bias=False)
    model.blocks[0].requires_grad_(False)
    sizes = {"accumulate": 2, "recompute": False}
    whole = estimate_of(model, 1, 4, 0, **sizes, shard=False)
    assert (whole.parameters, whole.gradients, whole.optimizer) == (3280, 2 * 2880, 2 * 2880)
    assert estimate_of(model, 1, 1, 0, **sizes, shard=True) == estimate_of(model, 1, 1, 0, **sizes, shard=False)
    shares = estimate_of(model, 1, 4, 0, **sizes, shard=True)
    assert (shares.parameters, shares.gradients, shares.optimizer) == (820 + 880, 720 + 880, 1440)
    config = _config(compute=Compute(accumulate=2), recompute=True)
    need = estimate(replace(config, compute=Compute(accumulate=2, shard=True)), world=2).total
    assert "it fits with compute.shard=true, with the same result" in advice(config, need, world=2)
