"""CLIP's image towers: a norm before the first block, no bias in the patch embedding, norms with eps 1e-5.

Reads the names of timm, of OpenAI (open_clip uses the same), and of Hugging Face. The text tower and the projection
into the space shared by image and text are left out. The weights do not tell the activation: OpenAI's towers have
QuickGELU, larger towers of others (width 1280 and more) have GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.family import SIZES, WIDE, Converted, Family, Signature
from mimbench.backbones.config import Traits

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEADS = WIDE  # ViT-H, g, bigG and e of open_clip; else 64 channels a head
NOTES = ("the activation is assumed: QuickGELU up to ViT-L, as in OpenAI's towers, GELU in larger ones",)
TOWERS = (r"visual\.conv1\.weight", r"visual\.class_embedding", r"visual\.transformer\.resblocks\.\d+\..*")
OPENAI = r"input_resolution"  # a number in OpenAI's files; open_clip's have none
BIAS = r"patch_embed\.proj\.bias"


def clip_heads(width: int) -> int:
    """Return the number of heads of a tower."""
    return HEADS.get(width, max(width // 64, 1))


def clip_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return a tower's traits. The sizes that OpenAI published have QuickGELU."""
    openai = len(weights["patch_embed.proj.weight"]) not in HEADS
    return replace(shown(weights), pre_norm=True, norm_eps=1e-5, activation="quick_gelu" if openai else "gelu")


def with_axes(weights: dict[str, Tensor]) -> Converted:
    """Give the class token and the positions timm's axes."""
    made = dict(weights)
    how = {}
    for name, axes in (("cls_token", 3), ("pos_embed", 3)):
        if name in made and made[name].ndim < axes:
            made[name] = made[name][(None,) * (axes - made[name].ndim)]
            how[name] = "given the axes of a batch"
    return made, how


def joined_heads(weights: dict[str, Tensor]) -> Converted:
    """Join Hugging Face's query, key and value into one matrix, and give the axes of `with_axes`."""
    made, how = with_axes(weights)
    for key in [key for key in made if ".attn.q_proj." in key]:
        parts = [key.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        joined = key.replace(".q_proj.", ".qkv.")
        if all(part in made for part in parts):
            made[joined] = torch.cat([made.pop(part) for part in parts])
            how[joined] = "query, key and value joined"
    return made, how


_clip = partial(
    Family,
    name="clip",
    positions="learned",
    interpolation="bicubic-antialias",
    mean=MEAN,
    std=STD,
    sizes=SIZES | {(512, 12), (640, 12), (896, 12)},
    heads=clip_heads,
    traits=clip_traits,
)
CLIP_TIMM = _clip(
    title="CLIP's image tower (Radford et al., 2021), by timm",
    signature=Signature(
        has=(
            r"norm_pre\.weight",
            r"norm\.weight",  # without it, it may be PE spatial, which `perception_encoder` handles
            r"patch_embed\.proj\.weight",
            r"pos_embed",
            r"cls_token",
            r"blocks\.\d+\.attn\.qkv\.weight",
        ),
        never=(BIAS, r"attn_pool\..*", r"blocks\.\d+\.(ls1\.gamma|gamma_1)", r"reg_token", r".*\.inner_attn_ln\..*"),
    ),
    source="timm's vit_*_clip_*",
    models=r"vit_\w+_clip_\w+",
    unsure=("activation", "mean", "std"),
    notes=NOTES,
    dropped=(
        (r"head\.(weight|bias)", "projection into the space of text"),
        (r"fc_norm\..*", "norm of the classification head"),
    ),
)
CLIP_OPENAI = _clip(
    title="CLIP (Radford et al., 2021), both towers",
    signature=Signature(has=(*TOWERS, OPENAI)),
    source="openai/CLIP",
    prefix="visual.",
    renames=(
        (r"^conv1\.", "patch_embed.proj."),
        (r"^class_embedding$", "cls_token"),
        (r"^positional_embedding$", "pos_embed"),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^transformer\.resblocks\.", "blocks."),
        (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
    convert=with_axes,
    dropped=(
        (r"visual\.proj", "projection into the space of text"),
        (
            r"(transformer|token_embedding|ln_final|text)\..*|positional_embedding|text_projection|attn_mask",
            "text tower",
        ),
        (r"logit_scale|logit_bias|input_resolution|context_length|vocab_size", "a number beside the towers"),
    ),
)
OPEN_CLIP = replace(
    CLIP_OPENAI,
    title="CLIP (Radford et al., 2021), both towers, by open_clip, or MetaCLIP",
    signature=Signature(has=TOWERS, never=(OPENAI,)),
    source="mlfoundations/open_clip, facebookresearch/MetaCLIP; OpenAI's without its numbers beside the towers",
    unsure=("activation", "mean", "std"),
    notes=NOTES,
)
CLIP_HF = _clip(
    title="CLIP (Radford et al., 2021), by Hugging Face",
    signature=Signature(
        has=(
            r"(vision_model\.)?embeddings\.class_embedding",
            r"(vision_model\.)?embeddings\.patch_embedding\.weight",
            r"(vision_model\.)?pre_layrnorm\.weight",
        )
    ),
    source="Hugging Face's CLIPModel and CLIPVisionModel",
    unsure=("activation",),
    notes=NOTES,
    renames=(
        (r"^vision_model\.", ""),
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^post_layernorm\.", "norm."),
        (r"^encoder\.layers\.", "blocks."),
        (r"\.self_attn\.([qkv])_proj\.", r".attn.\1_proj."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.layer_norm([12])\.", r".norm\1."),
    ),
    convert=joined_heads,
    dropped=(
        (r"text_model\..*", "text tower"),
        (r"(visual|text)_projection\.weight", "projection into the space of text"),
        (r"logit_scale", "a number beside the towers"),
        (r"(.*\.)?position_ids", "index into the positions"),
    ),
)
