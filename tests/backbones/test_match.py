"""Every key accounted for: recognition, wrappers, what is refused and what it is called."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.checkpoints.families import FAMILIES
from mimbench.backbones.checkpoints.keys import unwrap
from mimbench.backbones.checkpoints.match import Matched, match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.positions import fixed_table
from mimbench.backbones.vit import VisionTransformer

TINY = ViT(width=64, depth=2, heads=1, patch=8, image=32)
State = dict[str, Tensor]


def encoder(vit: ViT = TINY, final_norm: bool = True) -> State:
    """A random encoder; its positions are the fixed ones."""
    torch.manual_seed(0)
    return VisionTransformer(vit, final_norm).state_dict()


def learned(vit: ViT = TINY, final_norm: bool = True) -> State:
    """The same with a position table that was trained."""
    state = encoder(vit, final_norm)
    return {**state, "pos_embed": torch.randn_like(state["pos_embed"])}


def matched(folder: Path, content: Any) -> Matched:
    """The file with this content, matched."""
    torch.save(content, folder / "file.pth")
    return match(open_checkpoint(folder / "file.pth"))


def verdicts(found: Matched) -> dict[str, str]:
    """By key."""
    return {entry.key: entry.verdict for entry in found.entries}


MAE_DECODER = {"decoder_embed.weight": torch.zeros(32, 64), "mask_token": torch.zeros(1, 1, 32)}
CROSS_DECODER = {
    "decoder_blocks.0.cross_attn.q.weight": torch.zeros(32, 32),
    "decoder_blocks.0.norm1.weight": torch.zeros(32),
    "decoder_norm.weight": torch.zeros(32),
    "wfm.linear.weight": torch.zeros(1, 3),
    "dec_norms.0.weight": torch.zeros(64),
    "mask_token": torch.zeros(1, 1, 32),
}


def test_a_mae_with_its_mask_token_is_not_taken_for_another(tmp_path: Path) -> None:
    """timm and others take `mask_token` for DINOv2's or BEiT's."""
    found = matched(tmp_path, {"model": {**encoder(), **MAE_DECODER}, "args": argparse.Namespace(model="mae")})
    assert (found.family.name, found.final_norm, found.positions) == ("mae", True, "sincos")
    assert verdicts(found)["mask_token"] == verdicts(found)["decoder_embed.weight"] == "expected dropped"
    assert len(found.of("loaded")) == len(encoder())


def test_crossmae_has_no_final_norm_though_its_decoder_has_norms(tmp_path: Path) -> None:
    found = matched(tmp_path, {"model": {**encoder(final_norm=False), **CROSS_DECODER}})
    assert (found.family.name, found.final_norm) == ("crossmae", False)
    assert "norm.weight" not in found.tensors
    assert found.require() == ()
    without_maps = {key: value for key, value in CROSS_DECODER.items() if not key.startswith(("wfm", "dec_norms"))}
    assert matched(tmp_path, {**encoder(final_norm=False), **without_maps}).family.name == "crossmae"


def test_a_norm_in_a_crossmae_is_suspicious(tmp_path: Path) -> None:
    found = matched(tmp_path, {**encoder(final_norm=True), **CROSS_DECODER})
    assert [entry.key for entry in found.of("suspicious")] == ["norm.weight", "norm.bias"]


def test_a_pyramids_norm_is_never_the_encoders(tmp_path: Path) -> None:
    """detectron2's heuristic takes the longest suffix: `norm.weight` fits `simfp_4.0.norm.weight`."""
    heads = {"simfp_4.0.norm.weight": torch.zeros(64), "simfp_4.0.norm.bias": torch.zeros(64)}
    state = {f"backbone.{key}": value for key, value in {**learned(final_norm=False), **heads}.items()}
    found = matched(tmp_path, state)
    assert not found.final_norm
    assert verdicts(found)["backbone.simfp_4.0.norm.weight"] == "expected dropped"


@pytest.mark.parametrize("wrapper", ["module.", "model.", "backbone.", "module.encoder.", "student.backbone."])
def test_wrappers_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    found = matched(
        tmp_path, {f"{wrapper}{key}": value for key, value in learned().items()} | {"head.weight": torch.zeros(9)}
    )
    assert "".join(found.wrappers) == wrapper
    assert len(found.of("loaded")) == len(learned())
    assert verdicts(found)["head.weight"] == "expected dropped"


def test_a_wrapper_that_not_all_share_stays() -> None:
    keys = ["student.blocks.0.a", "teacher.blocks.0.a"]
    assert unwrap(keys).wrappers == ()
    assert unwrap(["encoder.norm.weight", "norm.weight", "encoder.cls_token"]).wrappers == ()
    assert unwrap(["module.conv1.weight", "module.fc.weight"]).names["module.fc.weight"] == "fc.weight"


def test_high_resolution_and_patch_14_are_read_off_the_shapes(tmp_path: Path) -> None:
    large = ViT(64, 1, 1, 16, 448)
    assert matched(tmp_path, {**encoder(large, False), **CROSS_DECODER}).vit == large  # 785 positions
    huge = ViT(1280, 1, 16, 14, 224)
    assert matched(tmp_path, encoder(huge)).vit == huge


def test_196_positions_are_14_by_14_and_no_class_token(tmp_path: Path) -> None:
    vit = ViT(64, 1, 1, 16, 224)
    state = learned(vit)
    rowless = {**state, "pos_embed": state["pos_embed"][:, 1:].clone()}
    found = matched(tmp_path, rowless)
    assert (found.vit, found.traits.class_token) == (vit, True)
    assert torch.equal(found.tensors["pos_embed"][:, 1:], rowless["pos_embed"])
    assert not found.tensors["pos_embed"][:, 0].any()
    assert verdicts(found)["pos_embed"] == "converted"
    del rowless["cls_token"]
    found = matched(tmp_path, rowless)
    assert (found.vit, found.traits) == (vit, Traits(class_token=False))
    assert found.tensors["pos_embed"].shape == (1, 196, 64)


def test_a_missing_class_token_is_not_explained_away(tmp_path: Path) -> None:
    state = learned()
    del state["cls_token"]
    assert [entry.key for entry in matched(tmp_path, state).of("suspicious")] == ["cls_token"]


def test_an_encoder_alone_is_mae_by_its_fixed_table_only(tmp_path: Path) -> None:
    assert matched(tmp_path, encoder()).family.name == "mae"
    assert matched(tmp_path, {key: value.half() for key, value in encoder().items()}).positions == "sincos"
    assert matched(tmp_path, learned()).family.name == "vit"
    assert matched(tmp_path, encoder(final_norm=False)).family.name == "plain"
    rows_first = torch.cat([torch.zeros(1, 1, 64), fixed_table(64, (4, 4), rows_first=True)], dim=1)
    assert matched(tmp_path, {**encoder(), "pos_embed": rows_first}).family.name == "mocov3"


def test_suspicious_keys_stop_the_load_and_are_named(tmp_path: Path) -> None:
    state = {**learned(), "adapter.weight": torch.zeros(3)}
    del state["blocks.1.mlp.fc2.bias"]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"adapter\.weight.*fc2\.bias is missing") as error:
        load_encoder(tmp_path / "odd.pth")
    assert "allow_partial=true" in str(error.value)
    assert "\n" not in str(error.value)
    taken, info = load_encoder(tmp_path / "odd.pth", allow_partial=True)
    assert len(info.partial) == 2
    assert "blocks.1.mlp.fc2.bias is missing" in info.partial
    assert taken.keys() == learned().keys()
    again, _ = load_encoder(tmp_path / "odd.pth", allow_partial=True)
    assert all(torch.equal(taken[key], again[key]) for key in taken)


def test_contradictions_stop_the_load_in_any_case(tmp_path: Path) -> None:
    for key, value, said in [
        ("blocks.0.norm1.bias", torch.zeros(3), "blocks.0.norm1.bias has shape 3,"),
        ("blocks.0.norm1.bias", torch.zeros(64, dtype=torch.int64), "torch.int64"),
    ]:
        torch.save({**learned(), key: value}, tmp_path / "wrong.pth")
        for allow in (False, True):
            with pytest.raises(ValueError, match=said):
                load_encoder(tmp_path / "wrong.pth", allow_partial=allow)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, number: float) -> None:
    state = learned()
    state["blocks.1.attn.proj.weight"][3, 4] = number
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"1 of the 4096 weights in blocks\.1\.attn\.proj\.weight are NaN or infinite"):
        load_encoder(tmp_path / "nan.pth", allow_partial=True)


OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "resnet": (
        {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1), "fc.weight": (10, 64)},
        "a ResNet",
    ),
    "bert": ({"bert.embeddings.word_embeddings.weight": (99, 64), "cls.bias": (99,)}, "a text model"),
    "llama": ({"model.embed_tokens.weight": (99, 64), "lm_head.weight": (99, 64)}, "a text model"),
    "swin": (
        {"patch_embed.proj.weight": (96, 3, 4, 4), "layers.0.blocks.0.attn.qkv.weight": (288, 96)},
        "a Swin transformer",
    ),
    "convnext": ({"stages.0.blocks.0.conv_dw.weight": (96, 1, 7, 7), "stem.0.weight": (96, 3, 4, 4)}, "a ConvNeXt"),
    "vgg": ({"features.0.weight": (64, 3, 3, 3)}, "a convolutional network"),
    "mmdetection": (
        {"backbone.patch_embed.proj.weight": (64, 3, 8, 8), "rpn_head.rpn_cls.weight": (3, 8, 1, 1)},
        "a whole detector of mmdetection",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    shapes, what = OTHERS[name]
    with pytest.raises(ValueError, match=f"holds {what}, by its keys") as error:
        matched(tmp_path, {"state_dict": {key: torch.zeros(shape) for key, shape in shapes.items()}})
    assert "\n" not in str(error.value)


def test_an_unknown_vit_gets_the_nearest_family_and_its_differences(tmp_path: Path) -> None:
    state = {key.replace("blocks.", "stages."): value for key, value in encoder(final_norm=False).items()}
    with pytest.raises(ValueError, match=r"no known family.* plain, but the file has no blocks\.N\.norm1\.weight"):
        matched(tmp_path, state)


def test_a_family_of_two_rules_is_not_nearest_because_it_breaks_only_one(tmp_path: Path) -> None:
    state = {key: value for key, value in encoder(final_norm=False).items() if key != "pos_embed"}
    with pytest.raises(ValueError, match=r"no known family.* plain, but the file has no pos_embed; it begins with"):
        matched(tmp_path, state)
    with pytest.raises(ValueError, match=r"no known family\. No key is named as in a ViT; it begins with a\.weight"):
        matched(tmp_path, {"a.weight": torch.zeros(3, 3)})


def test_shapes_of_no_vit_are_explained(tmp_path: Path) -> None:
    narrow = VisionTransformer(ViT(48, 1, 4, 8, 32)).state_dict()
    for state, said in [
        ({**learned(), "pos_embed": torch.zeros(1, 12, 64)}, "pos_embed has 12 rows"),
        (narrow, "number of heads"),
        ({**encoder(final_norm=False), "patch_embed.proj.weight": torch.zeros(64, 1, 8, 8)}, "1 channels"),
    ]:
        with pytest.raises(ValueError, match=said):
            matched(tmp_path, state)


def test_families_have_names_titles_and_sources() -> None:
    for family in FAMILIES:
        assert family.name and family.title and family.source
        assert family.name == family.name.lower()
