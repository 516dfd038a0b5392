"""SimMIM on a ViT, by its authors and by AMT: prefix `encoder.`, no bias in keys, LayerScale, one-layer decoder.

The authors' ViT-B has relative positions shared by all blocks, and no absolute ones. AMT's ViT-B has absolute
positions, and its blocks do not use `gamma_1`, so it keeps its initial value. This distinguishes the two; for AMT
`gamma_1` is set to 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.families.beit import (
    INDEX,
    relative_grid,
    relative_traits,
    shared_table,
    table_heads,
)
from mimbench.backbones.checkpoints.family import Converted, Family, Signature
from mimbench.backbones.config import Traits

MASK_TOKEN = (r"mask_token", "mask token")
DECODER = (r"decoder\.0\.(weight|bias)", "decoder")
HEAD = (
    (r"head\.(weight|bias)", "classification head"),
    (r"fc_norm\.(weight|bias)", "norm of the classification head"),
)
ABSOLUTE = (r"patch_embed\.proj\.weight", r"pos_embed", r"blocks\.\d+\.attn\.q_bias", r"blocks\.\d+\.attn\.v_bias")
FIRST_SCALE = ".ls1.gamma"  # `gamma_1`, as it is called after renaming
SCALES = ((r"\.gamma_([12])$", r".ls\1.gamma"),)
NEVER = (r".*relative_position_bias_table", r"lm_head\..*")


def absolute_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits of a plain ViT, with LayerScale if the file has it."""
    return Traits(layer_scale="blocks.0.ls1.gamma" in weights)


def plain_names(weights: dict[str, Tensor]) -> Converted:
    """Join the biases of queries and values with zeros for the keys, and set an unused `gamma_1` to one."""
    unused = _first_scales_unused(weights)
    made: dict[str, Tensor] = {}
    how: dict[str, str] = {}
    for key, value in weights.items():
        attention = key.removesuffix("q_bias")
        if key.endswith(".q_bias"):
            made[f"{attention}qkv.bias"] = torch.cat([value, torch.zeros_like(value), weights[f"{attention}v_bias"]])
            how[f"{attention}qkv.bias"] = "q_bias, zeros for the keys, v_bias"
        elif key.endswith(FIRST_SCALE) and unused:
            made[key], how[key] = torch.ones_like(value), "set to ones: AMT's blocks do not use it"
        elif not key.endswith(".v_bias"):
            made[key] = value
    return made, how


def _first_scales_unused(weights: Mapping[str, Tensor]) -> bool:
    """Whether all factors of attention are the same number, which training would have changed."""
    scales = [value.flatten() for key, value in weights.items() if key.endswith(FIRST_SCALE)]
    return bool(scales) and torch.cat(scales).unique().numel() == 1


SIMMIM = Family(
    name="simmim",
    title="SimMIM (Xie et al., 2022)",
    signature=Signature(
        has=(
            r"rel_pos_bias\.relative_position_bias_table",
            r"patch_embed\.proj\.weight",
            r"blocks\.\d+\.attn\.q_bias",
            r"mask_token",
        ),
        never=(r"lm_head\..*", r"pos_embed"),
    ),
    source="microsoft/SimMIM",
    convert=shared_table,
    dropped=(INDEX, DECODER, MASK_TOKEN),
    positions="relative",
    shown_heads=table_heads,
    grid=relative_grid,
    traits=relative_traits,
)
SIMMIM_ABSOLUTE = Family(
    name="simmim",
    title="SimMIM with absolute positions, as of AMT (Liu et al., 2023)",
    signature=Signature(has=(*ABSOLUTE, r"mask_token"), never=NEVER),
    source="guijiejie/AMT, SimMIM-AMT; microsoft/SimMIM with USE_APE",
    renames=SCALES,
    convert=plain_names,
    dropped=(DECODER, MASK_TOKEN),
    positions="learned",
    traits=absolute_traits,
)
SIMMIM_FINETUNED = Family(
    name="simmim",
    title="SimMIM with absolute positions, as of AMT (Liu et al., 2023), fine-tuned",
    signature=Signature(has=ABSOLUTE, never=(*NEVER, r"mask_token")),
    source="guijiejie/AMT, SimMIM-AMT; microsoft/SimMIM with USE_APE",
    renames=SCALES,
    convert=plain_names,
    dropped=HEAD,
    positions="learned",
    traits=absolute_traits,
)
