"""BEiT, BEiT v2 and data2vec, and these and SimMIM after fine-tuning: relative positions, LayerScale, no bias in keys.

A pretraining file has one table of relative positions for all blocks; a fine-tuned file has a table in each block. The
shared table is copied into every block, as the fine-tuning code of both does; this is exact. Resizing a table to
another number of patches would interpolate on an uneven grid of distances and change the encoder: `backbones/vit.py`
refuses it. ViTDet stretches the table (`backbones/relative_table.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from mimbench.backbones.checkpoints.family import HALF, Converted, Family, Signature
from mimbench.backbones.config import Traits

SHARED = "rel_pos_bias.relative_position_bias_table"
TABLE = "attn.relative_position_bias_table"
PRETRAINED = (r"rel_pos_bias\.relative_position_bias_table", r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.q_bias")
FINETUNED = (
    r"patch_embed\.proj\.weight",
    r"blocks\.\d+\.attn\.q_bias",
    r"blocks\.\d+\.attn\.relative_position_bias_table",
)
INDEX = (r"(.*\.)?relative_position_index", "index into the positions, computed anew")


def relative_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits of an encoder with BEiT's names, from the weights in the file."""
    return Traits(
        positions="relative",
        layer_scale="blocks.0.gamma_1" in weights,
        qkv_bias="blocks.0.attn.q_bias" in weights,
    )


def relative_grid(weights: Mapping[str, Tensor]) -> int:
    """Return the patches along one side, from the first block's table of (2 n - 1) ** 2 + 3 rows.

    Raises:
        ValueError: if there is no table, or it does not fit a square grid.
    """
    table = weights.get(f"blocks.0.{TABLE}")
    rows = 0 if table is None else len(table) - 3
    side = math.isqrt(max(rows, 0))
    if side * side != rows or side % 2 == 0:
        raise ValueError(f"its table of relative positions has {rows + 3} rows, which does not fit a square grid")
    return (side + 1) // 2


def table_heads(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of heads: the columns of a table of relative positions."""
    table = weights.get(f"blocks.0.{TABLE}")
    return table.shape[1] if table is not None and table.ndim == 2 else None


def shared_table(weights: dict[str, Tensor]) -> Converted:
    """Copy the shared table into every block."""
    made = {key: value for key, value in weights.items() if key != SHARED}
    blocks = sorted({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    tables = {f"blocks.{block}.{TABLE}": weights[SHARED] for block in blocks}
    return {**made, **tables}, dict.fromkeys(tables, "the positions that all blocks share, copied into each")


def predicts_features(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the decoder has the encoder's width on both sides, as data2vec's; BEiT's predicts 8192 tokens."""
    head = weights["lm_head.weight"]
    return head.ndim == 2 and head.shape[0] == head.shape[1]


_relative = partial(Family, positions="relative", grid=relative_grid, traits=relative_traits, shown_heads=table_heads)
BEIT_V2 = _relative(
    name="beitv2",
    title="BEiT v2 (Peng et al., 2022), pretrained",
    signature=Signature(has=(*PRETRAINED, r"lm_head\.weight", r"cls_pt_layers\.\d+\..*"), never=(r"pos_embed",)),
    source="microsoft/unilm, beit2",
    convert=shared_table,
    dropped=(
        INDEX,
        (r"(cls_pt_)?lm_head\..*", "decoder: logits of visual tokens"),
        (r"cls_pt_(layers|norm)\..*", "decoder of the class token"),
        (r"mask_token", "mask token"),
    ),
)
BEIT = _relative(
    name="beit",
    title="BEiT (Bao et al., 2022), pretrained",
    signature=Signature(has=(*PRETRAINED, r"lm_head\.weight"), never=(r"pos_embed", r"cls_pt_layers\..*")),
    source="microsoft/unilm, beit",
    convert=shared_table,
    dropped=(INDEX, (r"lm_head\..*", "decoder: logits of visual tokens"), (r"mask_token", "mask token")),
    mean=HALF,
    std=HALF,
    unsure=("mean", "std"),
    notes=("image mean and deviation .5, as BEiT uses on ImageNet-22k; its runs on ImageNet-1k alone use ImageNet's",),
)
DATA2VEC = replace(
    BEIT,
    name="data2vec",
    title="data2vec for images (Baevski et al., 2022), pretrained",
    source="facebookresearch/data2vec_vision",
    dropped=(INDEX, (r"lm_head\..*", "decoder: features of the teacher"), (r"mask_token", "mask token")),
    notes=("recognised as BEiT's encoder whose decoder predicts features; image mean and deviation .5 are assumed",),
    fits=predicts_features,
)
BEIT_FINETUNED = _relative(
    name="beit",
    title="BEiT, BEiT v2 or SimMIM, fine-tuned (the file does not tell which)",
    signature=Signature(has=FINETUNED, never=(r"pos_embed", SHARED.replace(".", r"\."), r"lm_head\..*")),
    source="microsoft/unilm, microsoft/SimMIM, timm's beit_* and beitv2_*",
    dropped=(
        INDEX,
        (r"head\.(weight|bias)", "classification head"),
        (r"fc_norm\.(weight|bias)", "norm of the classification head"),
        (r"mask_token", "mask token"),
    ),
    mean=HALF,
    std=HALF,
    unsure=("mean", "std"),
    notes=("image mean and deviation .5 as in BEiT; BEiT v2 and SimMIM use ImageNet's mean and deviation",),
)
