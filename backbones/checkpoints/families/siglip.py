"""SigLIP and SigLIP 2 by timm: no class token, learned positions, heads of 72 or 96 channels in the larger sizes.

Files do not tell the activation. timm uses that of the released weights: the tanh approximation of GELU with patches of
32, in so400m/16, in the giant and in large/16 at 512 pixels; the exact GELU in all others. Files without the attention
pool (`*_siglip_gap_*`) are recognised by what they lack: class token, head and a fixed table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from mimbench.backbones.checkpoints.families.plain import EMBEDDING, NOT_PLAIN, shown
from mimbench.backbones.checkpoints.family import HALF, WIDE, Family, Signature, table_grid
from mimbench.backbones.config import Traits
from mimbench.backbones.positions import rows_first

HEADS = {1152: 16, 1536: 16, **WIDE}  # so400m and giant-opt; else 64 channels each, or as in other papers
SIZES = frozenset({(768, 12), (1024, 24), (1152, 27), (1536, 40)})
TANH_GRID = 32  # patches along a side of large/16 at 512 pixels
NEVER = (*NOT_PLAIN, r"cls_token", r"reg_token", r"blocks\.\d+\.(ls1\.gamma|gamma_1)", r"fc_norm\..*", r"mask_token")


def siglip_heads(width: int) -> int:
    """Return the number of heads of a tower."""
    return HEADS.get(width, max(width // 64, 1))


def siglip_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return a tower's traits; the released sizes determine the activation."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    small_grid = width == 1024 and table_grid(weights) < TANH_GRID
    tanh = patch == 32 or (patch == 16 and width >= 1024 and not small_grid)
    return replace(shown(weights), activation="gelu_tanh" if tanh else "gelu")


def tokenless(weights: Mapping[str, Tensor]) -> bool:
    """Whether it has a learned table of a square grid, without a class token's row."""
    rows = weights["pos_embed"].shape[1] if weights["pos_embed"].ndim == 3 else 0
    return rows > 0 and table_grid(weights) ** 2 == rows and rows_first(weights["pos_embed"]) is None


_siglip = partial(
    Family,
    name="siglip",
    positions="learned",
    interpolation="bicubic-antialias",
    mean=HALF,
    std=HALF,
    models=r"vit_\w+_siglip_\w+",
    sizes=SIZES,
    heads=siglip_heads,
    traits=siglip_traits,
)
SIGLIP_TIMM = _siglip(
    title="SigLIP or SigLIP 2's image tower (Zhai et al., 2023; Tschannen et al., 2025), by timm",
    signature=Signature(has=(*EMBEDDING, r"attn_pool\.latent", r"norm\.weight", r"pos_embed"), never=NEVER),
    source="timm's vit_*_siglip_*",
    dropped=((r"attn_pool\..*", "attention pool"), (r"head\.(weight|bias)", "classification head")),
    fits=tokenless,
)
SIGLIP_GAP = _siglip(
    title="SigLIP or SigLIP 2's image tower (Zhai et al., 2023; Tschannen et al., 2025), by timm, without its pool",
    signature=Signature(
        has=(*EMBEDDING, r"norm\.weight", r"pos_embed", r"patch_embed\.proj\.bias", r"blocks\.\d+\.attn\.qkv\.bias"),
        never=(*NEVER, r"(head|attn_pool)\..*"),
    ),
    source="timm's vit_*_siglip_gap_*",
    notes=("recognised by what it lacks: class token, head and a fixed table; the file does not name SigLIP",),
    unsure=("heads", "activation", "mean", "std", "grid"),
    fits=lambda weights: tokenless(weights) and len(weights["patch_embed.proj.weight"]) not in WIDE,
)
