"""Cascade heads and LVIS's class losses against detectron2 (golden_heads.py), on images longer one way, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.config import SIZES
from mimbench.det.config import Heads, MaskRCNNConfig
from mimbench.det.model.federated import class_weights, drawn_classes, sigmoid_losses
from mimbench.det.model.mask_rcnn import MaskRCNN, build_mask_rcnn
from mimbench.det.model.masks import paste
from tests.det.tiny import LONG, MEAN, SEEN_IN, STD, batch, fill, fixed_permutation, tiny_detector

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_heads.json").read_text())
FEDERATED: dict[str, Any] = {
    "classes": 8,
    "class_loss": "federated",
    "class_weights": class_weights(torch.tensor(SEEN_IN)),
    "federated": 6,
}
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "cascade": (True, {"cascade": True}),
    "cascade-plain": (False, {"cascade": True}),
    "cascade-federated": (True, {"cascade": True, **FEDERATED}),
    "sigmoid": (False, {"class_loss": "sigmoid"}),
    "federated": (True, FEDERATED),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[MaskRCNN, dict[str, Any]]:
    """A filled detector in float64, and what detectron2's gave."""
    monkeypatch.setattr(torch, "randperm", fixed_permutation)
    rel_pos, changes = CASES[request.param]
    model = tiny_detector(rel_pos, **changes)
    fill(model)
    return model.double(), GOLDEN[request.param]


def test_names_are_those_of_detectron2(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    assert [[key, list(value.shape)] for key, value in sorted(model.roi_heads.state_dict().items())] == wanted["state"]


def test_losses_and_gradients(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    torch.manual_seed(0)
    losses = model.train()(batch(LONG))
    parts = {key: value.item() for key, value in losses.items() if key != "loss"}
    assert parts == pytest.approx(wanted["losses"], rel=1e-6)
    losses["loss"].backward()
    norms = {name: weight.grad.norm().item() for name, weight in model.named_parameters() if weight.grad is not None}
    assert norms == pytest.approx(wanted["gradients"], rel=1e-5, abs=1e-9)


def test_features_proposals_and_detections(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    content = batch(LONG)
    with torch.no_grad():
        maps = model.backbone(model.normalised(content["images"], LONG))
        proposals, _ = model.proposal_generator(maps, LONG, None)
    for given, (_, magnitude, first) in zip(maps, wanted["maps"], strict=True):
        assert given.abs().sum().item() == pytest.approx(magnitude, rel=1e-9)
        assert given.flatten()[:3].tolist() == pytest.approx(first, rel=1e-8)
    for boxes_N4, (count, total, _) in zip(proposals, wanted["proposals"], strict=True):
        assert (len(boxes_N4), boxes_N4.double().sum().item()) == (count, pytest.approx(total, abs=1e-2))
    for found, size, expected in zip(
        model.eval().detect(content["images"], LONG), LONG, wanted["detections"], strict=True
    ):
        shown = found.rescaled(size, size)
        assert torch.allclose(shown.boxes, torch.tensor(expected["boxes"]), atol=1e-3, rtol=0)
        assert shown.scores.tolist() == pytest.approx(expected["scores"], abs=1e-6)
        assert shown.labels.tolist() == expected["labels"]
        assert shown.masks.sum((1, 2)).tolist() == pytest.approx(expected["masks"], rel=1e-6)
        assert paste(shown.masks, shown.boxes, size).sum((1, 2)).tolist() == expected["pixels"]


def test_single_precision_gives_the_same_losses(case: tuple[MaskRCNN, dict[str, Any]]) -> None:
    model, wanted = case
    torch.manual_seed(0)
    losses = model.float()(batch(LONG))
    assert {key: losses[key].item() for key in wanted["losses"]} == pytest.approx(wanted["losses"], rel=1e-4)


def test_the_released_cascade_has_its_size() -> None:
    with torch.device("meta"):
        config = MaskRCNNConfig(data="", heads=Heads(cascade=True))
        base = build_mask_rcnn(config, SIZES["B"], classes=80, mean=MEAN, std=STD)
    assert base.state_dict()["roi_heads.box_predictor.2.bbox_pred.weight"].shape == (4, 1024)
    assert len(base.roi_heads.overlaps) == 3


def test_a_cascade_without_objects_or_a_class_loss_without_weights() -> None:
    model, content = tiny_detector(False, cascade=True, **FEDERATED).train(), batch()
    content["targets"] = [content["targets"][2]] * 3
    losses = model(content)
    assert losses["loss"].isfinite()
    assert losses["loss_box_reg_stage2"] == 0
    losses["loss"].backward()
    with pytest.raises(ValueError, match="needs a weight for each of the 8 classes"):
        tiny_detector(False, **{**FEDERATED, "class_weights": torch.ones(2)})


def test_each_image_draws_classes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def drawn(labels: torch.Tensor, *others: Any) -> torch.Tensor:
        asked.append(len(labels))
        return drawn_classes(labels, *others)

    monkeypatch.setattr("mimbench.det.model.box_head.drawn_classes", drawn)
    for mode, wanted in (("image", [32, 32, 32]), ("batch", [96])):
        asked.clear()
        model = tiny_detector(False, loss_weights=mode, **FEDERATED)
        fill(model)
        assert model(batch(LONG))["loss_cls"] > 0
        assert asked == wanted


def test_classes_are_drawn_by_their_weights() -> None:
    torch.manual_seed(0)
    weights = class_weights(torch.tensor([0, 100, 400, 1, 0, 0]))
    assert weights.tolist() == [0, 10, 20, 1, 0, 0]
    drawn = torch.cat([drawn_classes(torch.tensor([6, 0]), weights, 3) for _ in range(2000)]).bincount(minlength=7)
    assert (drawn[0], drawn[6], drawn[4]) == (2000, 2000, 0)
    assert drawn[1:4].div(2000).tolist() == pytest.approx([10 / 31, 20 / 31, 1 / 31], abs=0.04)
    assert sorted(drawn_classes(torch.tensor([6]), weights, 50).tolist()) == [1, 2, 3, 6]  # no more can be drawn


def test_sigmoid_losses_one_at_a_time() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 3, 1])
    for kept in (None, torch.tensor([3, 1])):
        plain = []
        for logit, label in zip(logits.tolist(), labels.tolist(), strict=True):
            among = range(3) if kept is None else [c for c in kept.tolist() if c < 3]
            chance = {c: 1 / (1 + torch.tensor(-logit[c]).exp().item()) for c in among}
            wrong = [-torch.tensor(p if c == label else 1 - p).log().item() for c, p in chance.items()]
            plain.append(sum(wrong))
        assert sigmoid_losses(logits, labels, kept).tolist() == pytest.approx(plain, rel=1e-6)
