"""What encoders have beyond a plain ViT: the values that make sense, and what ViTDet can have none of."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch

from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import ViTDet, vitdet_reason

TINY = ViT(width=64, depth=1, heads=1, patch=8, image=32)
OTHER: dict[str, Any] = {  # a value of each trait that is not MAE's
    "class_token": False, "registers": 4, "positions": "rope", "pre_norm": True, "layer_scale": True,
    "activation": "quick_gelu", "mlp": "swiglu", "hidden": 96, "patch_bias": False, "qkv_bias": False, "norm_eps": 1e-5,
}  # fmt: skip
SAID = {
    "registers": "4 registers", "positions": "rope positions", "pre_norm": "norm before the first block",
    "layer_scale": "LayerScale", "activation": "quick_gelu", "mlp": "SwiGLU", "hidden": "MLP 96 wide",
    "patch_bias": "no bias in the patch embedding", "qkv_bias": "no bias in query", "norm_eps": "eps 1e-05",
}  # fmt: skip


def test_maes_are_the_defaults() -> None:
    assert Traits().plain
    assert Traits().prefix == 1
    assert Traits(registers=4).prefix == 5
    assert set(OTHER) == {field.name for field in fields(Traits)}


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
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Traits(**values)


def test_they_survive_json() -> None:
    traits = Traits(**{**OTHER, "registers": 0})
    assert Traits(**json.loads(json.dumps(asdict(traits)))) == traits


@pytest.mark.parametrize("name", SAID)
def test_vitdet_refuses_each_by_its_name(name: str) -> None:
    traits = Traits(**{name: OTHER[name]})
    reason = vitdet_reason(traits)
    assert reason is not None
    assert SAID[name] in reason
    assert "\n" not in reason
    with pytest.raises(ValueError, match="cannot be a ViTDet backbone"):
        ViTDet(TINY, image=32, global_blocks=(0,)).load_encoder({}, traits)


def test_vitdet_takes_an_encoder_without_a_class_token() -> None:
    traits = Traits(class_token=False)
    assert vitdet_reason(traits) is vitdet_reason(Traits()) is None
    encoder = VisionTransformer(TINY, traits=traits)
    model = ViTDet(TINY, image=32, global_blocks=(0,))
    model.load_encoder(encoder.state_dict(), traits)
    assert torch.equal(model.pos_embed[:, 1:], encoder.pos_embed)
    assert not model.pos_embed[:, 0].any()
