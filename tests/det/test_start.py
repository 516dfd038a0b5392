"""Detection runs that start from a whole detector's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.content import content_hash
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.model.build import build_detector

CONFIG = MaskRCNNConfig(
    data="none",
    encoder=ViT(64, 2, 1, patch=16, image=32),
    vitdet=ViTDetConfig(window=2, channels=8, scales=(1.0, 0.5)),
    proposals=Proposals(convs=1, anchor_sizes=(16.0, 24.0, 32.0)),
    heads=Heads(convs=1, channels=8, fc=8),
    image=64,
)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """A detector's weights, its relative positions not zero."""
    torch.manual_seed(0)
    model, _ = build_detector(CONFIG, classes=3)
    return {key: value + 0.01 * torch.randn_like(value) for key, value in model.state_dict().items()}


def saved(file: Path, state: dict[str, Tensor]) -> MaskRCNNConfig:
    """As detectron2 saves it, with what old versions add; the run that starts from it."""
    constants = {
        "pixel_mean": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4),
    }
    torch.save({"model": {**state, **constants}, "iteration": 5, "optimizer": {}}, file)
    return replace(CONFIG, checkpoint=str(file))


def test_all_of_it_is_taken(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    model, info = build_detector(saved(tmp_path / "d.pth", trained), classes=3)
    assert info is not None
    assert (info.family, info.partial) == ("detectron2, the whole detector", ())
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())


def test_relative_positions_of_another_size_of_image_are_resized(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    model, _ = build_detector(replace(saved(tmp_path / "d.pth", trained), image=128), classes=3)
    name = "backbone.net.blocks.1.attn.rel_pos_h"  # of the block that attends globally
    assert trained[name].shape == (7, 64)
    assert model.state_dict()[name].shape == (15, 64)


def test_another_detector_is_refused_by_name(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    config = saved(tmp_path / "d.pth", trained)
    with pytest.raises(
        ValueError, match=r"d\.pth is a whole detector that differs .* roi_heads\.\S+ is \(.*number of cat"
    ):
        build_detector(config, classes=5)
    with pytest.raises(ValueError, match=r"its proposal_generator\.rpn_head\.\S+ is \(.*, here none"):
        build_detector(replace(config, proposals=replace(CONFIG.proposals, convs=2)), classes=3)


@pytest.mark.parametrize("prefix", ["backbone.net.", "net.", ""])
def test_of_a_backbone_alone_relative_positions_are_taken(
    tmp_path: Path, trained: dict[str, Tensor], prefix: str
) -> None:
    part = "backbone.net."
    net = {key.replace(part, prefix): value for key, value in trained.items() if key.startswith(part)}
    torch.save({"model": net}, tmp_path / "net.pth")
    config = replace(CONFIG, checkpoint=str(tmp_path / "net.pth"))
    model, info = build_detector(config, classes=3)
    assert info is not None
    assert (info.family, info.partial) == ("detectron2, with its relative positions", ())
    taken = {key: value for key, value in model.state_dict().items() if key.startswith(part)}
    table = taken.pop("backbone.net.pos_embed")  # but for the row of a class token, which nothing looks at
    assert torch.equal(table[:, 1:], trained["backbone.net.pos_embed"][:, 1:])
    assert all(torch.equal(value, trained[key]) for key, value in taken.items())
    hashes = {content_hash(tmp_path / "net.pth", role="detector")}
    net[next(key for key in net if key.endswith("rel_pos_w"))].add_(1)
    torch.save({"model": net}, tmp_path / "other.pth")
    assert content_hash(tmp_path / "other.pth", role="detector") not in hashes
    with pytest.raises(ValueError, match=r"net\.pth holds a ViTDet with trained .* set vitdet\.rel_pos=true"):
        build_detector(replace(config, vitdet=replace(CONFIG.vitdet, rel_pos=False)), classes=3)


def test_elsewhere_it_is_refused_for_its_relative_positions(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    file = tmp_path / "d.pth"
    saved(file, trained)
    with pytest.raises(ValueError, match=r"rel_pos_h"):
        load_encoder(file)
    with pytest.raises(ValueError, match=r"rel_pos_h"):
        content_hash(file)


def test_all_its_weights_are_its_content(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    files = [tmp_path / f"{name}.pth" for name in "abc"]
    head = "roi_heads.box_predictor.cls_score.bias"
    for file, state in zip(
        files, (trained, dict(reversed(trained.items())), {**trained, head: trained[head] + 1}), strict=True
    ):
        saved(file, state)
    one, same, other = (content_hash(file, role="detector") for file in files)
    assert one == same != other
