"""TIPS and TIPS v2: DINOv2's names with one register, which is a second class token for the text.

Recognised by that one register; DINOv2 has none or four. Its images are in 0..1, not normalised further, and its
positions are resized bilinearly, with antialiasing (google-deepmind/tips, its script for inference).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mimbench.backbones.checkpoints.families.dinov2 import DINOV2_REGISTERS, DINOV2_TIMM
from mimbench.backbones.checkpoints.family import Family

NAMES = ("reg_token", "register_tokens")


def one_register(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is exactly one register."""
    return any(name in weights and weights[name].shape[1] == 1 for name in NAMES)


def tips_heads(width: int) -> int:
    """Return the number of heads: 72 channels per head in so400m (width 1152), otherwise 64."""
    return 16 if width == 1152 else max(width // 64, 1)


def by_timm(weights: Mapping[str, Tensor]) -> bool:
    """Return whether there is one register and patches are 14 pixels wide."""
    return one_register(weights) and weights["patch_embed.proj.weight"].shape[-1] == 14


TIPS: Family = replace(
    DINOV2_REGISTERS,
    name="tips",
    title="TIPS or TIPS v2 (Maninis et al., 2024)",
    source="google-deepmind/tips",
    interpolation="bilinear-antialias",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    notes=("distinguished from DINOv2 by its single register, which is a second class token",),
    sizes=frozenset({(384, 12), (768, 12), (1024, 24), (1152, 27), (1536, 40)}),
    fits=one_register,
    heads=tips_heads,
)
TIPS_TIMM: Family = replace(
    DINOV2_TIMM,
    name=TIPS.name,
    title="TIPS v2 (Maninis et al., 2024), by timm",
    signature=replace(DINOV2_TIMM.signature, has=(*DINOV2_TIMM.signature.has, r"reg_token")),
    source="timm's vit_*_tipsv2",
    interpolation=TIPS.interpolation,
    mean=TIPS.mean,
    std=TIPS.std,
    notes=TIPS.notes,
    models=r"vit_\w+_tips\w*",
    sizes=TIPS.sizes,
    fits=by_timm,
    heads=tips_heads,
)
