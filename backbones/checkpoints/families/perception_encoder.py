"""Perception Encoder by timm: CLIP's names, and rotary positions that files do not hold.

PE core is recognised by its attention pool; its rotary positions have the grid of its position table. PE spatial and
lang have no final norm. Those with LayerScale or without a class token are recognised by that. The others have the keys
of a CLIP tower without its final norm, which is another encoder (cosine of features .956): `family=` must say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mimbench.backbones.checkpoints.families.clip import CLIP_TIMM
from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.family import HALF, Family, Signature, table_grid
from mimbench.backbones.config import Rope, Traits

HEADS = {1536: 16}  # G; else 64 channels each
SIZES = frozenset({(192, 12), (384, 12), (768, 12), (1024, 24), (1024, 23), (1536, 50), (1536, 47)})
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


def of_pe(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the tower has LayerScale or no class token, which no CLIP has."""
    return "blocks.0.gamma_1" in weights or "cls_token" not in weights


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
    models=r"vit_pe_\w+",
    sizes=SIZES,
    heads=pe_heads,
    traits=pe_traits,
)
PE_TOLD = replace(
    PE_CORE,
    title="Perception Encoder, spatial or lang (Bolya et al., 2025), by timm",
    signature=Signature(has=TOWER, never=(*NEVER, r"(fc_)?norm\.weight")),
    source="timm's vit_pe_spatial_* and vit_pe_lang_*",
    dropped=PE_CORE.dropped[1:],
    fits=of_pe,
)
PE_OR_CLIP = replace(
    PE_TOLD,
    title="the Perception Encoder, spatial or lang (Bolya et al., 2025)",
    rivals=("clip",),
    fits=lambda weights: not of_pe(weights),
)
CLIP_NORMLESS = replace(
    CLIP_TIMM,
    title="CLIP without its final norm",
    signature=PE_TOLD.signature,
    fits=PE_OR_CLIP.fits,
)
