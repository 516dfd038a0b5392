"""What encoders have beyond a plain ViT: the values that make sense, and what ViTDet can have none of."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from mimbench.backbones.checkpoints.info import EncoderInfo, differences, from_json, to_json
from mimbench.backbones.config import Rope, Traits, ViT, Windows
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import ViTDet, detectron2_reason, vitdet_reason

TINY = ViT(width=64, depth=1, heads=1, patch=8, image=32)
SAMS = Windows(14, (0,))
OTHER: dict[str, Any] = {  # a value of each trait that is not MAE's
    "class_token": False, "registers": 4, "positions": "rope", "pre_norm": True, "layer_scale": True,
    "activation": "quick_gelu", "mlp": "swiglu", "hidden": 96, "patch_bias": False, "qkv_bias": False, "norm_eps": 1e-5,
    "rope": Rope(4), "key_bias": False, "proj_bias": False, "mlp_bias": False, "attention_norm": True, "mlp_norm": True,
    "patch_norm": True, "norm": "rms",
}  # fmt: skip
SAID = {
    "registers": "4 registers", "positions": "rope positions", "pre_norm": "norm before the first block",
    "layer_scale": "LayerScale", "activation": "quick_gelu", "mlp": "SwiGLU", "hidden": "MLP of width 96",
    "patch_bias": "no bias in the patch embedding", "qkv_bias": "no bias in query", "norm_eps": "eps 1e-05",
    "rope": "rotary positions", "key_bias": "no bias in keys", "proj_bias": "no bias in attention's projection",
    "mlp_bias": "no bias in the MLP", "attention_norm": "norm inside attention", "mlp_norm": "norm inside the MLP",
    "patch_norm": "norm of embedded patches", "norm": "rms norms",
}  # fmt: skip


def test_maes_are_the_defaults() -> None:
    assert Traits().plain
    assert Traits().prefix == 1
    assert Traits(registers=4).prefix == 5
    assert {*OTHER, "windows"} == {field.name for field in fields(Traits)}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"positions": "learned"}, "absolute, relative, rope, none"),
        ({"activation": "relu"}, "gelu, quick_gelu"),
        ({"mlp": "moe"}, "swiglu_split"),
        ({"registers": -1}, "registers=-1"),
        ({"hidden": 0}, "hidden=0"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"registers": 2, "class_token": False}, "class token"),
        ({"norm": "batch"}, "layer, rms"),
        ({"rope": Rope(4), "positions": "relative"}, "positions=relative"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Traits(**values)


def test_they_survive_json() -> None:
    many, sam = Traits(**{**OTHER, "registers": 0, "positions": "none"}), Traits(class_token=False, windows=SAMS)
    for traits in (many, Traits(), Traits(positions="rope"), sam):
        about = EncoderInfo("ours", TINY, final_norm=False, traits=traits)
        assert from_json(to_json(about)) == about


@pytest.mark.parametrize("name", SAID)
def test_detectron2_lacks_each_by_its_name(name: str) -> None:
    traits = Traits(**{name: OTHER[name]})
    reason = detectron2_reason(traits)
    assert reason is not None
    assert SAID[name] in reason
    assert "\n" not in reason
    assert vitdet_reason(traits) is None
    with pytest.raises(ValueError, match="this ViTDet"):
        ViTDet(TINY, image=32, global_blocks=(0,)).load_encoder({}, traits)


def test_a_grid_of_windows_that_is_the_encoders_is_not_said() -> None:
    """SAM's content hashes are those of before there was such a grid."""
    said = differences(Traits(class_token=False, windows=SAMS))
    assert said == {"class_token": False, "windows": {"side": 14, "global_blocks": (0,)}}
    other = differences(Traits(class_token=False, windows=replace(SAMS, grid=8)))
    assert other["windows"] == {"side": 14, "global_blocks": (0,), "grid": 8}


def test_what_has_no_meaning_in_vitdet_is_refused() -> None:
    traits = Traits(positions="relative", registers=4)
    assert vitdet_reason(traits) is None
    with pytest.raises(ValueError, match="none for its 4 registers; prefix=drop"):
        ViTDet(TINY, traits, image=32, prefix="global")


def test_vitdet_takes_an_encoder_without_a_class_token() -> None:
    traits = Traits(class_token=False)
    assert detectron2_reason(traits) is detectron2_reason(Traits()) is None
    encoder = VisionTransformer(TINY, traits=traits)
    model = ViTDet(TINY, image=32, global_blocks=(0,))
    model.load_encoder(encoder.state_dict(), traits)
    assert torch.equal(model.pos_embed[:, 1:], encoder.pos_embed)
    assert not model.pos_embed[:, 0].any()
