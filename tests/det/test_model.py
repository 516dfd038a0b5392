"""Mask R-CNN against detectron2: what golden_model.py wrote down when it ran detectron2 on the same weights.

Weights, images and objects come from formulas, and random permutations are replaced by a fixed one, so that both
draw the same samples. Everything runs in float64 (boxes are float32 in either).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.config import SIZES, ViT
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.model.mask_rcnn import MaskRCNN, build_mask_rcnn
from mimbench.det.model.masks import InstanceMasks, paste
from tests.det.tiny import MEAN, SHAPES, STD, batch, fill, fixed_permutation, star, tiny_detector

CASES = {"relative": True, "plain": False}


def golden() -> dict[str, Any]:
    """What detectron2 gave."""
    content: dict[str, Any] = json.loads((Path(__file__).parent / "golden_model.json").read_text())
    return content


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[MaskRCNN, dict[str, Any]]:
    """A filled detector in float64, and what detectron2's gave."""
    monkeypatch.setattr(torch, "randperm", fixed_permutation)
    model = tiny_detector(CASES[request.param])
    fill(model)
    return model.double(), golden()[request.param]


def test_features_and_proposals(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    with torch.no_grad():
        maps = model.backbone(model.normalised(batch()["images"], SHAPES))
        proposals, _ = model.proposal_generator(maps, SHAPES, None)
    for given, (total, magnitude, first) in zip(maps, wanted["maps"], strict=True):
        assert given.sum().item() == pytest.approx(total, rel=1e-9, abs=1e-9)
        assert given.abs().sum().item() == pytest.approx(magnitude, rel=1e-10)
        assert given.flatten()[:3].tolist() == pytest.approx(first, rel=1e-9)
    for boxes_N4, (count, total, first) in zip(proposals, wanted["proposals"], strict=True):
        assert len(boxes_N4) == count
        assert boxes_N4.double().sum().item() == pytest.approx(total, abs=1e-2)
        assert torch.allclose(boxes_N4[:3], torch.tensor(first), atol=1e-3, rtol=0)


def test_losses_and_gradients(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    losses = model.train()(batch())
    parts = {key: value.item() for key, value in losses.items() if key != "loss"}
    assert parts == pytest.approx(wanted["losses"], rel=1e-6)
    assert losses["loss"].item() == pytest.approx(sum(parts.values()))
    losses["loss"].backward()
    norms = {name: weight.grad.norm().item() for name, weight in model.named_parameters() if weight.grad is not None}
    assert norms == pytest.approx(wanted["gradients"], rel=1e-5, abs=1e-9)


def test_detections(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    content = batch()
    for found, size, expected in zip(
        model.eval().detect(content["images"], SHAPES), SHAPES, wanted["detections"], strict=True
    ):
        shown = found.rescaled(size, size)
        assert torch.allclose(shown.boxes, torch.tensor(expected["boxes"]), atol=1e-3, rtol=0)
        assert shown.scores.tolist() == pytest.approx(expected["scores"], abs=1e-6)
        assert shown.labels.tolist() == expected["labels"]
        assert shown.masks.sum((1, 2)).tolist() == pytest.approx(expected["masks"], rel=1e-6)
        assert paste(shown.masks, shown.boxes, size).sum((1, 2)).tolist() == expected["pixels"]


def test_single_precision_gives_the_same_losses(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    losses = model.float()(batch())
    assert {key: losses[key].item() for key in wanted["losses"]} == pytest.approx(wanted["losses"], rel=1e-4)


def test_half_precision_losses_are_single_and_close(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.float()(batch())
    assert {value.dtype for value in losses.values()} == {torch.float32}
    for key in ("loss_rpn_cls", "loss_mask"):  # the others depend on which proposals are sampled
        assert losses[key].item() == pytest.approx(wanted["losses"][key], rel=0.05)


@pytest.mark.parametrize("class_loss", ["softmax", "sigmoid"])
def test_half_precision_detections_are_single_and_close(case: tuple[MaskRCNN, dict[str, Any]], class_loss: str) -> None:
    """Scores with 8 bits would be equal for detections that differ."""
    model = case[0].eval().float()
    heads: Any = model.roi_heads
    for predictor in [module for module in heads.modules() if hasattr(module, "scores")]:
        predictor.options = replace(predictor.options, class_loss=class_loss)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.detect(batch()["images"], SHAPES)
    assert sum(len(one.scores) for one in found) > 0
    assert {values.dtype for one in found for values in (one.boxes, one.scores, one.masks)} == {torch.float32}


def test_names_and_sizes_are_those_of_detectron2() -> None:
    assert [[key, list(value.shape)] for key, value in sorted(tiny_detector(True).state_dict().items())] == golden()[
        "state"
    ]
    with torch.device("meta"):
        base = build_mask_rcnn(MaskRCNNConfig(data=""), SIZES["B"], classes=80, mean=MEAN, std=STD)
    assert len(base.state_dict()) == 245  # 110,895,792 parameters: facts of the released ViTDet-B
    assert sum(weight.numel() for weight in base.parameters()) == 110_895_792


def test_no_objects_at_all() -> None:
    model = tiny_detector(False).train()
    content = batch()
    content["targets"] = [content["targets"][2]] * 3
    losses = model(content)
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_loc"] == 0
    losses["loss"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_a_detector_that_finds_nothing() -> None:
    model = tiny_detector(False).eval()
    model.roi_heads.options = replace(model.roi_heads.options, score_threshold=0.99)
    for found in model.detect(batch()["images"], SHAPES):
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 28, 28)
        assert paste(found.masks, found.boxes, (50, 60)).shape == (0, 50, 60)


def test_weights_that_are_not_finite_give_losses_that_are_not() -> None:
    model = tiny_detector(False).train()
    with torch.no_grad():
        model.backbone.net.patch_embed.proj.bias.fill_(float("nan"))
    assert not model(batch())["loss"].isfinite()
    assert all(not len(found.scores) for found in model.eval().detect(batch()["images"], SHAPES))


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"anchor_sizes=.* must have 5 sizes"):
        MaskRCNNConfig(data="", proposals=Proposals(anchor_sizes=(32, 64)))
    config = MaskRCNNConfig(data="", encoder=ViT(32, 2, 4, patch=4, image=32), image=144)
    with pytest.raises(ValueError, match="image=144 must be a multiple of 32"):
        build_mask_rcnn(config, SIZES["S"], classes=3, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="images of 130x64 pixels exceed"):
        tiny_detector(False).normalised(torch.zeros(1, 3, 130, 64), [(130, 64)])


def test_any_pyramid_trains() -> None:
    config = MaskRCNNConfig(
        data="",
        encoder=ViT(32, 2, 4, patch=4, image=32),
        image=64,
        vitdet=ViTDetConfig(window=4, global_blocks=(1,), channels=16, scales=(1.0, 0.5)),
        proposals=Proposals(convs=1, anchor_sizes=(8, 16, 32)),
        heads=Heads(convs=1, channels=16, fc=16),
        loss_weights="batch",
    )
    model = build_mask_rcnn(config, config.encoder, classes=2, mean=MEAN, std=STD)
    assert model.backbone.strides == (4, 8, 16)
    assert "proposal_generator.rpn_head.conv.weight" in model.state_dict()  # detectron2's name for a single one
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    target["masks"] = InstanceMasks([[star(24, 24, 32, 32)]])  # type: ignore[assignment]
    content = {"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "sizes": [(64, 64)], "targets": [target]}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    torch.manual_seed(0)
    losses = []
    for _ in range(8):
        loss = model.train()(content)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
