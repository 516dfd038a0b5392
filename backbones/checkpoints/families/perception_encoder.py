"""Perception Encoder by timm: CLIP's names, and rotary positions that files do not hold.

PE core is recognised by its attention pool; its rotary positions have the grid of its position table. PE spatial and
lang have no final norm and otherwise the keys of a CLIP tower. A CLIP file without its final norm looks the same, so
such a file is refused: loaded as CLIP it would be another encoder (cosine of the features .956).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from torch import Tensor

from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.family import HALF, Family, Signature, table_grid
from mimbench.backbones.config import Rope, Traits

HEADS = {1536: 16}  # G; else 64 channels each
TOWER = (r"norm_pre\.weight", r"patch_embed\.proj\.weight", r"pos_embed", r"blocks\.\d+\.attn\.qkv\.weight")
NEVER = (r"patch_embed\.proj\.bias", r"reg_token", r".*\.inner_attn_ln\..*")


def pe_heads(width: int) -> int:
    """Return the number of heads of a tower."""
    return HEADS.get(width, max(width // 64, 1))


def pe_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return a tower's traits; a class token has the position (0, 0), and the patches begin at (1, 1)."""
    found = shown(weights)
    rope = Rope(table_grid(weights), order="xy", offset=1.0 if found.class_token else 0.0)
    return replace(found, pre_norm=True, norm_eps=1e-5, layer_scale="blocks.0.gamma_1" in weights, rope=rope)


def ambiguous(_weights: Mapping[str, Tensor]) -> NoReturn:
    """Refuse a file that may be either of two encoders.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "it has no final norm, so it may be CLIP (without rotary positions) or PE spatial or PE lang (with them), and "
        "the file does not tell which; give a CLIP file with its final norm, or PE core with its attention pool"
    )


PE_CORE = Family(
    name="pe",
    title="Perception Encoder, core (Bolya et al., 2025), by timm",
    signature=Signature(has=(*TOWER, r"attn_pool\.latent", r"norm\.weight"), never=NEVER),
    source="timm's vit_pe_core_*",
    dropped=(
        (r"attn_pool\..*", "attention pool"),
        (r"head\.(weight|bias)", "projection into the space of text"),
    ),
    positions="learned",
    interpolation="bicubic-antialias",
    mean=HALF,
    std=HALF,
    heads=pe_heads,
    traits=pe_traits,
)
PE_OR_CLIP = Family(
    name="pe",
    title="Perception Encoder, spatial or lang (Bolya et al., 2025), or CLIP without its final norm",
    signature=Signature(has=TOWER, never=(*NEVER, r"(fc_)?norm\.weight")),
    source="timm's vit_pe_spatial_* and vit_pe_lang_*",
    positions="learned",
    traits=ambiguous,
)
