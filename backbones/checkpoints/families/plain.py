"""Encoders with the keys of a plain ViT: timm's ViTs, DeiT, DINO, MoCo v3, fine-tuned MAE and CrossMAE.

Many of these files cannot be distinguished: timm's DINO, a DeiT and an ImageNet ViT without their heads hold the same
keys. Their family is then `vit`, or `plain` without a final norm, which is enough for an evaluation. The notes of the
entry name what is assumed (the statistics of the images).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.families.mae import mae_heads
from mimbench.backbones.checkpoints.family import (
    HALF,
    SIZES,
    Converted,
    Family,
    Signature,
    papers_heads,
    table_grid,
)
from mimbench.backbones.config import Traits
from mimbench.backbones.positions import rows_first

EMBEDDING = (r"patch_embed\.proj\.weight", r"blocks\.\d+\.norm1\.weight")
NOT_PLAIN = (
    r"decoder\w*\..*", r".*relative_position\w*", r".*rel_pos\w*", r"blocks\.\d+\.attn\.q_bias", r"norm_pre\..*",
)  # fmt: skip
HEAD = (
    (r"head\..*", "classification head"),
    (r"head_dist\..*", "head of the distillation token"),
    (r"fc_norm\.(weight|bias)", "norm of the classification head"),
    (r"pre_logits\..*", "classification head"),
)
ORIGIN = "the file does not tell its origin: its keys fit DINO, DeiT, timm's ImageNet ViTs and others"
STATISTICS = "nor the mean and deviation of its images: ImageNet's are assumed (Google's ViTs use .5)"


def shown(weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits of a ViT with timm's names, from the weights in the file."""
    width = weights["patch_embed.proj.weight"].shape[0] if "patch_embed.proj.weight" in weights else 0
    hidden = next((len(value) for key, value in weights.items() if key.endswith(".mlp.fc1.weight")), 4 * width)
    rows = weights["pos_embed"].shape[1] if "pos_embed" in weights else 0
    tokenless = "cls_token" not in weights and rows > 0 and rows == table_grid(weights) ** 2
    return Traits(
        class_token=not tokenless,
        registers=weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        layer_scale=any(key.endswith(".ls1.gamma") for key in weights),
        hidden=None if hidden == 4 * width else hidden,
        patch_bias="patch_embed.proj.bias" in weights,
        qkv_bias=any(key.endswith(".attn.qkv.bias") for key in weights),
    )


def post_norm(_weights: Mapping[str, Tensor]) -> NoReturn:
    """Refuse an encoder whose norms follow attention.

    Raises:
        ValueError: always.
    """
    raise ValueError("mimbench's blocks do not support norms after attention and after the MLP")


def moco_heads(width: int) -> int:
    """Return the number of heads of MoCo v3: 12 in its ViT-S (width 384), as in its ViT-B."""
    return 12 if width == 384 else papers_heads(width)


def distillation_token(weights: dict[str, Tensor]) -> Converted:
    """Convert DeiT's distillation token to a register: it is never pooled; its position (row 1) is added to it."""
    table, token = weights["pos_embed"], weights["dist_token"]
    made = {key: value for key, value in weights.items() if key != "dist_token"}
    made["reg_token"] = token + table[:, 1:2]
    made["pos_embed"] = torch.cat([table[:, :1], table[:, 2:]], dim=1)
    how = {
        "reg_token": "the distillation token and its position",
        "pos_embed": "without the distillation token's row",
    }
    return made, how


MOCO = Family(
    name="mocov3",
    title="MoCo v3 (Chen et al., 2021), both encoders",
    signature=Signature(has=(r"base_encoder\.patch_embed\.proj\.weight", r"momentum_encoder\.norm\.weight")),
    source="facebookresearch/moco-v3",
    prefix="base_encoder.",
    dropped=(
        (r"momentum_encoder\..*", "momentum encoder"),
        (r"predictor\..*", "predictor"),
        (r"base_encoder\.head\..*", "projection head"),
    ),
    heads=moco_heads,
)
MOCO_CLASSIFIER = Family(
    name="mocov3",
    title="MoCo v3 (Chen et al., 2021), one encoder",
    signature=Signature(has=(*EMBEDDING, r"norm\.weight", r"cls_token", r"pos_embed"), never=NOT_PLAIN),
    source="facebookresearch/moco-v3, its linear probes and what it converts for DeiT",
    dropped=HEAD,
    heads=moco_heads,
    fits=lambda weights: rows_first(weights["pos_embed"]) is True,
)
DINO = Family(
    name="dino",
    title="DINO (Caron et al., 2021), with its head",
    signature=Signature(
        has=(*EMBEDDING, r"head\.mlp\.0\.weight", r"head\.last_layer\..*", r"cls_token"),
        never=(*NOT_PLAIN, r"mask_token", r"blocks\.\d+\.ls1\.gamma"),
    ),
    source="facebookresearch/dino",
    dropped=((r"head\..*", "projection head"),),
    positions="learned",
    interpolation="bicubic-offset",
)
DEIT_DISTILLED = Family(
    name="deit",
    title="DeiT (Touvron et al., 2021), distilled",
    signature=Signature(has=(*EMBEDDING, r"dist_token", r"pos_embed"), never=NOT_PLAIN),
    source="facebookresearch/deit, timm's deit_*_distilled_*",
    convert=distillation_token,
    dropped=HEAD,
    positions="learned",
    traits=shown,
)
DEIT3 = Family(
    name="deit3",
    title="DeiT III (Touvron et al., 2022)",
    signature=Signature(
        has=(*EMBEDDING, r"blocks\.\d+\.gamma_1", r"pos_embed", r"norm\.weight"), never=(*NOT_PLAIN, r"mask_token")
    ),
    source="facebookresearch/deit, models_v2.py",
    renames=((r"\.gamma_([12])$", r".ls\1.gamma"),),
    dropped=HEAD,
    positions="learned",
    traits=shown,
    rivals=("rope_vit",),  # timm's deit3_* files are told from both by ls1.gamma
    wrapper="model",
    models=r"deit3_\w+|deit_\w+",
)
CLASSIFIER = Family(
    name="finetuned",
    title="a fine-tuned classifier on averaged patches",
    signature=Signature(
        has=(*EMBEDDING, r"fc_norm\.weight", r"head\.(weight|\d+\.weight)", r"pos_embed"),
        never=(*NOT_PLAIN, r"norm\.weight", r"blocks\.\d+\.gamma_1"),
    ),
    source="facebookresearch/mae, TonyLianLong/CrossMAE: main_finetune.py",
    dropped=HEAD,
    positions="learned",
    rivals=("vit_rpn",),
    models=r"vit_(?!\w+_rpn_)\w+|eva_large\w+|mae_\w+",
    sizes=SIZES - {(192, 12)},  # MAE-Lite's ViT-Tiny has 12 heads, DeiT's 3
    unsure=("mean", "std", "grid"),
    heads=mae_heads,
    traits=shown,
)
POST_NORM = Family(
    name="vit_rpn",
    title="timm's vit_*_rpn_*, whose norms follow attention and MLP",
    signature=Signature(
        has=(*EMBEDDING, r"fc_norm\.weight", r"pos_embed"),
        never=(
            *NOT_PLAIN,
            *(r"norm\.weight", r"cls_token", r"reg_token", r"blocks\.\d+\.(gamma_1|ls1\.gamma|attn\.qkv\.bias)"),
        ),
    ),
    source="timm's vit_*_rpn_*",
    dropped=HEAD,
    models=r"vit_\w*_rpn_\w+",
    traits=post_norm,
)
AUGREG = Family(
    name="augreg",
    title="Google's ViT on ImageNet-21k (Dosovitskiy et al., 2021; Steiner et al., 2021)",
    signature=Signature(
        has=(*EMBEDDING, r"norm\.weight", r"pos_embed"), any=(r"pre_logits\..*", r"head\.weight"), never=NOT_PLAIN
    ),
    source="timm's vit_*.augreg_in21k and vit_*.orig_in21k",
    dropped=HEAD,
    positions="learned",
    interpolation="bicubic-antialias",
    mean=HALF,
    std=HALF,
    unsure=("grid",),
    traits=shown,
    fits=lambda weights: len(weights.get("head.weight", ())) in (0, 21841, 21843),
)
VIT = Family(
    name="vit",
    title="a plain ViT",
    signature=Signature(
        has=(*EMBEDDING, r"norm\.weight", r"pos_embed"), never=(*NOT_PLAIN, r"mask_token", r".*gamma_1")
    ),
    source="timm, facebookresearch/dino, facebookresearch/deit",
    dropped=HEAD,
    positions="learned",
    interpolation="bicubic-antialias",
    models=r"vit_\w+_gap_\d+",
    unsure=("mean", "std", "grid"),
    traits=shown,
    notes=(ORIGIN, STATISTICS),
)
VIT_TOKENLESS = replace(
    VIT,
    title="a plain ViT without a class token",
    signature=replace(VIT.signature, never=(*VIT.signature.never, r"cls_token")),
    sizes=frozenset(),  # timm's ViT-B of this kind has 16 heads
)
PLAIN = Family(
    name="plain",
    title="a plain ViT without a final norm",
    signature=Signature(
        has=(*EMBEDDING, r"cls_token", r"pos_embed"),
        never=(*NOT_PLAIN, r"(fc_)?norm\.weight", r"mask_token", r".*gamma_1", r".*ls1\.gamma"),
    ),
    source="an encoder extracted from its file",
    dropped=HEAD[:1],
    unsure=("mean", "std", "grid"),
    notes=("the file does not tell its origin: its keys fit CrossMAE's encoder and others",),
)
PLAIN_SCALED = replace(
    PLAIN,
    title="a plain ViT with LayerScale and without a final norm",
    signature=Signature(
        has=(*EMBEDDING, r"cls_token", r"pos_embed", r"blocks\.\d+\.ls1\.gamma", r"patch_embed\.proj\.bias"),
        never=(*NOT_PLAIN, r"(fc_)?norm\.weight", r"mask_token", r"reg_token", r".*gamma_1"),
    ),
    source="timm's vit_intern300m_*, or an encoder extracted from its file",
    traits=shown,
    notes=("the file does not tell its origin: its keys fit InternViT and DINOv2 without its final norm",),
)
