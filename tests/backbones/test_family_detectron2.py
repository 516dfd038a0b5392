"""detectron2's ViTDet files: what becomes of each key, and detectron2's own features from its weights.

`golden/detectron2.json` was made by detectron2 (`golden/make_detectron2.py`); the weights are made by a rule.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimbench.backbones.checkpoint import build_encoder, load_encoder
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import ViT
from mimbench.backbones.vitdet import ViTDet
from tests.backbones.golden.sine import filled, image, summary

GOLDEN = json.loads((Path(__file__).parent / "golden" / "detectron2.json").read_text())
VIT = ViT(64, 2, 1, patch=16, image=64)


def detector(relative: str = "trained") -> dict[str, Tensor]:
    """The weights of the golden numbers with a detector's names; relative positions "trained", "zero" or "none"."""
    state = filled(GOLDEN["state"], swing=GOLDEN["swing"])
    heads = ("proposal_generator.rpn_head.objectness_logits.weight", "roi_heads.box_predictor.cls_score.bias")
    state |= {name: torch.ones(2) for name in heads}
    if relative == "zero":
        return {key: torch.zeros_like(value) if ".rel_pos_" in key else value for key, value in state.items()}
    return {key: value for key, value in state.items() if relative == "trained" or ".rel_pos_" not in key}


def write(file: Path, state: dict[str, Tensor]) -> Path:
    """As detectron2's training saves it, or as its model zoo has it (.pkl)."""
    if file.suffix == ".pkl":
        arrays = {key: value.numpy() for key, value in state.items()}
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "ViTDet"}))
    else:
        torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 99}, file)
    return file


def assert_like(tokens: Tensor, golden: dict[str, list[float]]) -> None:
    for name, values in summary(tokens, 0).items():
        assert values == pytest.approx(golden[name], rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("size", [0, 1])
def test_as_a_plain_encoder_it_gives_the_originals_features(tmp_path: Path, size: int) -> None:
    golden = GOLDEN["plain"][size]
    model, info = build_encoder(write(tmp_path / "d.pkl", detector("none")), VIT)
    assert info is not None
    assert (info.family, info.vit, info.final_norm, info.traits.class_token) == ("detectron2", VIT, False, False)
    with torch.no_grad():
        grid = model.double()(image(*golden["size"])).grid
    assert_like(grid.flatten(1, 2), golden)


@pytest.mark.parametrize("size", [0, 1])
def test_as_vitdet_with_its_relative_positions_too(size: int) -> None:
    golden = GOLDEN["windows"][size]
    model = ViTDet(VIT, image=128, window=3, global_blocks=(1,))
    state = detector()
    model.load_state_dict({key: state[f"backbone.net.{key}"] for key in model.state_dict()})
    with torch.no_grad():
        last = model.double()(image(*golden["size"]))
    assert_like(last.flatten(2).transpose(1, 2), golden)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("relative", ["zero", "none"])
def test_every_key_is_accounted_for(tmp_path: Path, suffix: str, relative: str) -> None:
    state = detector(relative)
    matched = match(open_checkpoint(write(tmp_path / f"d{suffix}", state)))
    matched.require()
    found = {entry.key: (entry.verdict, entry.note) for entry in matched.entries}
    assert found.keys() == state.keys()
    assert found["backbone.net.blocks.1.attn.qkv.bias"] == ("loaded", "")
    assert found["backbone.net.pos_embed"] == ("converted", "without the class token's row")
    assert found["backbone.simfp_2.4.norm.weight"] == ("expected dropped", "pyramid")  # no final norm, for all its name
    assert found["roi_heads.box_predictor.cls_score.bias"] == ("expected dropped", "box and mask heads")
    assert found["proposal_generator.rpn_head.objectness_logits.weight"] == ("expected dropped", "proposal head")
    if relative == "zero":
        assert found["backbone.net.blocks.0.attn.rel_pos_w"] == ("expected dropped", "relative positions that are zero")


@pytest.mark.parametrize("prefix", ["backbone.net.", "net.", "backbone.bottom_up.net.", "module.backbone.net.", ""])
def test_a_backbone_alone_under_any_name(tmp_path: Path, prefix: str) -> None:
    whole = detector("zero")
    state = {prefix + key.removeprefix("backbone.net."): value for key, value in whole.items() if ".net." in key}
    loaded, info = load_encoder(write(tmp_path / "b.pth", state))
    assert info.family == "detectron2"
    assert torch.equal(loaded["blocks.0.mlp.fc1.weight"], whole["backbone.net.blocks.0.mlp.fc1.weight"])


def test_trained_relative_positions_stop_the_load(tmp_path: Path) -> None:
    file = write(tmp_path / "d.pth", detector())
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.rel_pos_h is trained, and a plain") as refused:
        load_encoder(file)
    assert "\n" not in str(refused.value)
    loaded, info = load_encoder(file, allow_partial=True)
    assert len(info.partial) == 4
    assert not any("rel_pos" in key for key in loaded)
