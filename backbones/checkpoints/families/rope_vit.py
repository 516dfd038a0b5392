"""RoPE-ViT with axial positions, by its authors and by timm: DeiT III's names, and rotary positions that no file holds.

With absolute positions beside them (`*_rope_ape_*`) a file has the very keys and shapes of DeiT III. Frequencies of
the mixed kind (`rope.freqs`) are learned in each block for one scale, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mimbench.backbones.checkpoints.families.plain import EMBEDDING, HEAD, NOT_PLAIN, shown
from mimbench.backbones.checkpoints.family import Family, Signature, table_grid
from mimbench.backbones.config import Rope, Traits

ROPE = Rope(None, theta=100.0, order="xy")  # steps of one patch at every size
PRETRAINED_GRID = 14  # patches along a side, of 224 pixels
NEVER = (*NOT_PLAIN, r"mask_token", r"reg_token", r"rope\..*", r"freqs\w*")


def rope_vit_traits(weights: Mapping[str, Tensor]) -> Traits:
    """An encoder's traits; some have a table of absolute positions as well."""
    found = replace(shown(weights), class_token=True, layer_scale=True, rope=ROPE)
    return found if "pos_embed" in weights else replace(found, positions="none")


def rope_vit_grid(weights: Mapping[str, Tensor]) -> int:
    """Patches along one side of a pretraining image: the table's, or the paper's."""
    return table_grid(weights) if "pos_embed" in weights else PRETRAINED_GRID


ROPE_VIT = Family(
    name="rope_vit",
    title="RoPE-ViT with axial and absolute positions (Heo et al., 2024)",
    signature=Signature(
        has=(*EMBEDDING, r"blocks\.\d+\.gamma_1", r"cls_token", r"pos_embed", r"norm\.weight"), never=NEVER
    ),
    source="naver-ai/rope-vit, timm's vit_*_rope_ape_*",
    dropped=HEAD,
    positions="learned",
    interpolation="bicubic-antialias",
    rivals=("deit3",),
    models=r"vit_\w+_rope_ape_\d+|rope_axial_ape_\w+",
    grid=rope_vit_grid,
    traits=rope_vit_traits,
)
ROPE_VIT_ALONE = replace(
    ROPE_VIT,
    title="RoPE-ViT with axial positions alone (Heo et al., 2024)",
    signature=Signature(
        has=(*EMBEDDING, r"blocks\.\d+\.gamma_1", r"cls_token", r"norm\.weight", r"blocks\.\d+\.attn\.qkv\.bias"),
        never=(*NEVER, r"pos_embed", r"blocks\.\d+\.attn\.\w*norm\w*\..*"),
    ),
    source="naver-ai/rope-vit, timm's vit_*_rope_*",
    positions="none",
    rivals=(),
    models=r"vit_\w+_rope_\d+|rope_axial_deit\w+",
)
