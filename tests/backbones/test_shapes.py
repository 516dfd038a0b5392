"""The names and shapes that `shapes.encoder_shapes` tells are those of the encoder that `vit` builds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from mimbench.backbones.config import Rope, Traits, ViT, Windows
from mimbench.backbones.shapes import encoder_shapes
from mimbench.backbones.vit import VisionTransformer

VIT = ViT(24, 1, 2, patch=4, image=16)
POSITIONS: tuple[dict[str, Any], ...] = (
    {"positions": "absolute"}, {"positions": "relative"}, {"positions": "rope"}, {"positions": "none"},
    {"rope": Rope(4)}, {"positions": "none", "rope": Rope(None, order="xy", offset=1.0)},
)  # fmt: skip
CHANGES: tuple[dict[str, Any], ...] = (
    {}, {"class_token": False}, {"registers": 3}, {"pre_norm": True}, {"layer_scale": True}, {"patch_bias": False},
    {"qkv_bias": False}, {"key_bias": False}, {"proj_bias": False}, {"mlp_bias": False}, {"attention_norm": True},
    {"mlp_norm": True}, {"patch_norm": True}, {"hidden": 20}, {"mlp": "swiglu"}, {"mlp": "swiglu_split"},
    {"activation": "quick_gelu"},
)  # fmt: skip


def _built(vit: ViT, final_norm: bool, traits: Traits) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        weights = VisionTransformer(vit, final_norm, traits=traits).state_dict()
    return {name: tuple(value.shape) for name, value in weights.items()}


@pytest.mark.parametrize("where", POSITIONS, ids=str)
def test_every_pair_of_traits(where: dict[str, Any]) -> None:
    for number, (first, second) in enumerate(itertools.combinations_with_replacement(CHANGES, 2)):
        if first.get("class_token", True) or "registers" not in second:
            traits = Traits(**{**where, "norm": ("layer", "rms")[number % 2], **first, **second})
            final_norm = bool(number % 3)
            assert encoder_shapes(VIT, final_norm, traits) == _built(VIT, final_norm, traits), traits


def test_all_blocks_in_the_order_of_the_state_dictionary() -> None:
    deep = replace(VIT, depth=3)
    assert list(encoder_shapes(deep, True, Traits()).items()) == list(_built(deep, True, Traits()).items())


def test_tables_of_windows_and_of_global_blocks() -> None:
    for windows, rows in ((Windows(3, (1,)), 7), (Windows(3, (1,), grid=5), 9)):
        deep, traits = replace(VIT, depth=3), Traits(class_token=False, windows=windows)
        assert list(encoder_shapes(deep, False, traits).items()) == list(_built(deep, False, traits).items())
        assert encoder_shapes(deep, False, traits)["blocks.1.attn.rel_pos_h"][0] == rows
