"""Perception Encoder, by its authors and by timm: CLIP's names, and rotary positions that files do not hold.

PE core is recognised by its attention pool; its rotary positions have the grid of its position table. PE spatial and
lang have no final norm. Those with LayerScale or without a class token are recognised by that. The others have the keys
of a CLIP tower without its final norm, which is another encoder (cosine of features .956): `family=` must say which.

The authors' names are open_clip's, of the whole model or of the image tower alone. Core is recognised by the probe of
its attention pool, spatial and lang by lacking the norm and the projection that every tower of open_clip has. At the
size of its pretraining an encoder is the authors' exactly. At other sizes rotary positions span the pretraining grid,
as in timm's model and in the authors' detector; the authors' plain encoder takes steps of one patch there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mimbench.backbones.checkpoints.families.clip import CLIP_OPENAI, CLIP_TIMM, with_axes
from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.family import HALF, Family, Signature, table_grid
from mimbench.backbones.config import Rope, Traits

HEADS = {1536: 16}  # G; else 64 channels each
SIZES = frozenset({(192, 12), (384, 12), (768, 12), (1024, 24), (1024, 23), (1536, 50), (1536, 47)})
DENSE = "pe_spatial"  # the name of spatial, which has one with lang: their files differ in depth alone
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
    models=r"vit_pe_core_\w+",
    sizes=SIZES,
    heads=pe_heads,
    traits=pe_traits,
)


def _by_authors(prefix: str, core: bool) -> Family:
    """Return the family of the authors' files with this prefix, of core or of spatial and lang."""
    at = prefix.replace(".", r"\.")
    embedding = (
        at + r"conv1\.weight",
        at + r"ln_pre\.weight",
        at + r"transformer\.resblocks\.\d+\.attn\.in_proj_weight",
    )
    pool = (at + r"attn_pool\.probe", at + r"ln_post\.weight")
    dropped = ((at + r"attn_pool\..*", "attention pool"), (at + "proj", "projection into the space of text"))
    return replace(
        PE_CORE,
        name=PE_CORE.name if core else DENSE,
        title=f"Perception Encoder, {'core' if core else 'spatial or lang'} (Bolya et al., 2025)"
        + (", both towers" if prefix else ", the image tower"),
        signature=Signature(
            has=(*embedding, *(pool if core else ())),
            never=(at + r"conv1\.bias", *(() if core else (*pool, at + "proj")), *(() if prefix else (r"visual\..*",))),
        ),
        source="facebookresearch/perception_models",
        prefix=prefix,
        renames=(*CLIP_OPENAI.renames, (r"\.ls_([12])\.gamma$", r".gamma_\1")),
        convert=with_axes,
        models="",
        dropped=(*(dropped if core else ()), *(CLIP_OPENAI.dropped[1:] if prefix else ())),
    )


PE_AUTHORS = tuple(_by_authors(prefix, core) for prefix in ("visual.", "") for core in (True, False))
PE_TOLD = replace(
    PE_CORE,
    name=DENSE,
    title="Perception Encoder, spatial or lang (Bolya et al., 2025), by timm",
    signature=Signature(has=TOWER, never=(*NEVER, r"(fc_)?norm\.weight")),
    source="timm's vit_pe_spatial_* and vit_pe_lang_*",
    dropped=PE_CORE.dropped[1:],
    models=r"vit_pe_(spatial|lang)_\w+",
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
