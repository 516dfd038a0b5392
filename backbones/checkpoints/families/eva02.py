"""EVA-02 and EVA02-CLIP by timm: rotary positions and a table, SwiGLU with a norm inside, no bias in keys.

Files do not hold rotary positions. All sizes of both use those of 16 x 16 patches, at every fine-tuning resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.families.clip import MEAN, STD
from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.families.simmim import plain_names
from mimbench.backbones.checkpoints.family import Converted, Family, Signature
from mimbench.backbones.config import Rope, Traits

PRETRAINED_GRID = 16  # patches along a side
PARTS = ("q", "k", "v")


def eva02_heads(width: int) -> int:
    """Return the number of heads: 64 channels per head in all sizes."""
    return max(width // 64, 1)


def eva02_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return an encoder's traits; EVA02-CLIP also has a norm before attention's projection."""
    last = weights.get("blocks.0.mlp.fc2.weight")
    return Traits(
        mlp="swiglu_split",
        hidden=None if last is None else last.shape[1],
        mlp_norm=True,
        attention_norm="blocks.0.attn.norm.weight" in weights,
        key_bias=False,
        rope=Rope(PRETRAINED_GRID),
    )


def packed(weights: Mapping[str, Tensor]) -> bool:
    """Return whether one matrix makes gate and value."""
    first, last = (weights.get(f"blocks.0.mlp.fc{number}.weight") for number in (1, 2))
    return first is not None and last is not None and len(first) == 2 * last.shape[1]


def packed_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits of the tiny and small sizes: gate and value in one matrix, and no norm inside the MLP."""
    return Traits(
        mlp="swiglu",
        hidden=weights["blocks.0.mlp.fc2.weight"].shape[1],
        key_bias=False,
        rope=Rope(PRETRAINED_GRID),
    )


def joined(weights: dict[str, Tensor]) -> Converted:
    """Join query, key and value into one matrix, and rename the biases of query and value to match."""
    made = dict(weights)
    how: dict[str, str] = {}
    for key in [key for key in weights if key.endswith(".attn.q_proj.weight")]:
        at = key.removesuffix("q_proj.weight")
        if all(f"{at}{part}_proj.weight" in made for part in PARTS):
            made[f"{at}qkv.weight"] = torch.cat([made.pop(f"{at}{part}_proj.weight") for part in PARTS])
            how[f"{at}qkv.weight"] = "query, key and value joined"
        for part in ("q", "v"):
            if f"{at}{part}_proj.bias" in made:
                made[f"{at}{part}_bias"] = made.pop(f"{at}{part}_proj.bias")
                how[f"{at}{part}_bias"] = "the bias of query or value"
    return made, how


EVA02_TIMM = Family(
    name="eva02",
    title="EVA-02 or EVA02-CLIP (Fang et al., 2023; Sun et al., 2023), by timm",
    signature=Signature(
        has=(
            r"cls_token",
            r"pos_embed",
            r"blocks\.\d+\.attn\.q_proj\.weight",
            r"blocks\.\d+\.mlp\.norm\.weight",
            r"blocks\.\d+\.mlp\.fc1_g\.weight",
        ),
        never=(r"blocks\.\d+\.gamma_1", r"norm_pre\..*", r"reg_token", r"rope\..*", r"blocks\.\d+\.attn\.k_proj\.bias"),
    ),
    source="timm's eva02_*",
    convert=joined,
    dropped=(
        (r"head\.(weight|bias)", "classification head"),
        (r"fc_norm\.(weight|bias)", "norm of the classification head"),
    ),
    positions="learned",
    interpolation="bicubic-antialias",
    mean=MEAN,
    std=STD,
    models=r"eva02_\w+",
    heads=eva02_heads,
    traits=eva02_traits,
)
EVA02_SMALL = replace(
    EVA02_TIMM,
    title="EVA-02 in its tiny and small sizes (Fang et al., 2023), by timm",
    signature=Signature(
        has=(
            *(r"cls_token", r"pos_embed", r"blocks\.\d+\.attn\.q_bias", r"blocks\.\d+\.attn\.qkv\.weight"),
            r"blocks\.\d+\.mlp\.fc1\.weight",
        ),
        never=(r"blocks\.\d+\.gamma_1", r"norm_pre\..*", r"reg_token", r"rope\..*", r"mask_token", r".*rel_pos.*"),
    ),
    source="timm's eva02_tiny_* and eva02_small_*",
    convert=None,
    traits=packed_traits,
    fits=packed,
)
EVA01 = Family(
    name="eva",
    title="EVA or EVA-CLIP's giant (Fang et al., 2022), by timm",
    signature=replace(EVA02_SMALL.signature),
    source="timm's eva_giant_*",
    convert=plain_names,
    dropped=EVA02_TIMM.dropped,
    positions="learned",
    interpolation="bicubic-antialias",
    mean=MEAN,
    std=STD,
    models=r"eva_giant\w+",
    unsure=("mean", "std"),  # the one fine-tuned at 560 pixels has ImageNet's
    sizes=frozenset({(1408, 40)}),
    traits=shown,
    fits=lambda weights: len(weights["patch_embed.proj.weight"]) == 1408,
)
