"""How transformers names the weights of its ViTs, and how they become mimbench's.

Files have the names of transformers 4, which transformers 5 still writes and reads; those that version 5 uses in
memory are taken as well. Queries, keys and values are separate there and one matrix here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.family import Converted

Step = Callable[[dict[str, Tensor], dict[str, str]], None]  # changes the tensors and says how each came about
Rules = tuple[tuple[str, str], ...]

PATCH = "patch_embed.proj.weight"
BASE = r"^(?:vit|deit|beit|data2vec_vision|dinov2|dinov2_with_registers|dinov3_vit|ijepa|backbone|model)\."


@dataclass(frozen=True)
class Names:
    """The names of one group of model types; the fields are as in `Family`."""

    patches: str  # a regex: the key of the patch embedding, by which a file of the group is told
    renames: Rules
    dropped: Rules


VIT = Names(
    patches=r"(.*\.)?embeddings\.patch_embeddings\.(projection\.)?weight",
    renames=(
        (BASE, ""),
        (r"^model\.", ""),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"^(?:encoder\.)?relative_position_bias\.", "rel_pos_bias."),
        (r"^shared_position_bias\.", "rel_pos_bias."),
        (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
        (r"^(blocks\.\d+)\.relative_position_bias\.", r"\1.attn."),
        (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q_proj."),
        (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k_proj."),
        (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v_proj."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.lambda_([12])$", r".gamma_\1"),
        (r"\.mlp\.weights_in\.", ".mlp.fc1."),
        (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        (r"^layernorm\.", "norm."),
    ),
    dropped=(
        (r"(.*\.)?pooler\..*", "pooler"),
        (r"(cls_|distillation_)?classifier\..*", "classification head"),
        (r"decoder\..*", "decoder"),
        (r"lm_head\..*", "decoder: logits of visual tokens"),
        (r"(.*\.)?mask_token", "mask token"),
        (r"(decode_head|auxiliary_head)\..*", "segmentation head"),
        (r"(.*\.)?fpn\w*\..*", "pyramid"),
        (r"(.*\.)?relative_position_index", "index into the positions, computed anew"),
    ),
)
CLIP = Names(
    patches=r"(clip\.)?(vision_model\.)?embeddings\.patch_embedding\.weight",
    renames=(
        (r"^clip\.", ""),  # in CLIPSeg
        (r"^vision_model\.", ""),
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^post_layernorm\.", "norm."),
        (r"^encoder\.layers?\.", "blocks."),  # without s as transformers 5 saves AltCLIP's whole model
        (r"\.self_attn\.([qkv])_proj\.", r".attn.\1_proj."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.layer_norm([12])\.", r".norm\1."),
    ),
    dropped=(
        (r"(clip\.)?text_model\..*", "text tower"),
        (r"(clip\.)?(visual|text)_projection\.weight", "projection into the space of text"),
        (r"decoder\..*", "decoder"),
        (r"(vision_model\.)?head\..*", "attention pool"),
        (r"classifier\..*", "classification head"),
        (r"(clip\.)?logit_(scale|bias)", "a number beside the towers"),
        (r"(.*\.)?position_ids", "index into the positions"),
    ),
)
VITDET = Names(
    patches=r"((model|backbone)\.)?embeddings\.projection\.weight",
    renames=(
        (BASE, ""),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.", "blocks."),
        (r"\.attention\.", ".attn."),
    ),
    dropped=(),
)
TIPS = Names(  # the authors' names, which transformers writes
    patches=r"(vision_encoder\.)?patch_embed\.proj\.weight",
    renames=(
        (r"^vision_encoder\.", ""),
        (r"^register_tokens$", "reg_token"),
        (r"\.mlp\.(c_fc|w12)\.", ".mlp.fc1."),
        (r"\.mlp\.(c_proj|w3)\.", ".mlp.fc2."),
    ),
    dropped=(
        (r"(vision_encoder\.)?mask_token", "mask token"),
        (r"text_encoder\..*", "text tower"),
        (r"temperature", "a number beside the towers"),
    ),
)
AIMV2 = Names(
    patches=r"(vision_model\.)?embeddings\.patch_embed\.weight",
    renames=(
        (r"^vision_model\.", ""),
        (r"^embeddings\.patch_embed\.", "patch_embed.proj."),
        (r"^embeddings\.rms_norm\.", "patch_embed.norm."),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^encoder\.layers\.", "blocks."),
        (r"\.attention\.([qkv])_proj\.", r".attn.\1_proj."),
        (r"\.attention\.out_proj\.", ".attn.proj."),
        (r"\.ffn\.", ".mlp."),
        (r"\.rms_norm([12])\.", r".norm\1."),
        (r"^rms_norm\.", "norm."),
    ),
    dropped=CLIP.dropped,
)
SAM = Names(
    patches=r"vision_encoder\.patch_embed\.projection\.weight",
    renames=(
        (r"^vision_encoder\.", ""),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"\.mlp\.lin([12])\.", r".mlp.fc\1."),
    ),
    dropped=(
        (r"vision_encoder\.neck\..*", "neck"),
        (r"prompt_encoder\..*", "encoder of prompts"),
        (r"mask_decoder\..*", "decoder of masks"),
        (r"shared_image_embedding\..*", "encoder of prompts"),
    ),
)


def flat_table(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Give SAM's position table (1, n, n, D) the axes of the others, (1, n * n, D)."""
    if "pos_embed" in weights and weights["pos_embed"].ndim == 4:
        weights["pos_embed"] = weights["pos_embed"].flatten(1, 2)
        how["pos_embed"] = "rows and columns joined"


def joined_heads(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Join query, key and value into one matrix, and their biases; keys without a bias get zeros, which is equal."""
    for key in [key for key in weights if key.endswith((".attn.q_proj.weight", ".attn.q_proj.bias"))]:
        parts = [key.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        held = [weights.pop(part) for part in parts if part in weights]
        note = "query, key and value joined"
        if len(held) == 2 and key.endswith(".bias") and held[0].shape == held[1].shape:
            held.insert(1, torch.zeros_like(held[0]))
            note = "queries' and values' bias, and zeros for the keys, which have none"
        joined = key.replace(".q_proj.", ".qkv.")
        weights[joined], how[joined] = torch.cat(held), note


def separate_biases(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Name the biases of queries and values as BEiT's and DINOv3's blocks do, whose keys have none."""
    for key in [key for key in weights if key.endswith((".attn.q_proj.bias", ".attn.v_proj.bias"))]:
        renamed = key.replace("_proj.bias", "_bias")
        weights[renamed] = weights.pop(key)
        how[renamed] = "of queries" if "q_bias" in renamed else "of values"


def with_axes(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Give the class token and the positions the axes that timm gives them."""
    for name in ("cls_token", "pos_embed"):
        if name in weights and weights[name].ndim < 3:
            weights[name] = weights[name][(None,) * (3 - weights[name].ndim)]
            how[name] = "given the axes of a batch"


def distillation_token(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Make DeiT's second token a register with its row of the table, as `families.plain.distillation_token` does."""
    if "dist_token" not in weights or "pos_embed" not in weights:
        return
    table = weights["pos_embed"]
    weights["reg_token"] = weights.pop("dist_token") + table[:, 1:2]
    weights["pos_embed"] = torch.cat([table[:, :1], table[:, 2:]], dim=1)
    how["reg_token"] = "the distillation token and its position"
    how["pos_embed"] = "without the distillation token's row"


def gated_in_one(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Join DINOv2's gate and value, which are two matrices in transformers 5's memory and one in its files."""
    for key in [key for key in weights if ".mlp.gate_proj." in key]:
        value, joined = key.replace(".gate_proj.", ".up_proj."), key.replace(".gate_proj.", ".fc1.")
        if value in weights:
            weights[joined] = torch.cat([weights.pop(key), weights.pop(value)])
            how[joined] = "gate and value joined"
    _rename(weights, how, ".mlp.down_proj.", ".mlp.fc2.")


def gated_in_two(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Name DINOv3's MLP, with a gate or without, and its LayerScale as timm's Eva does."""
    gated = any(".mlp.gate_proj." in key for key in weights)
    _rename(weights, how, ".mlp.gate_proj.", ".mlp.fc1_g.")
    _rename(weights, how, ".mlp.up_proj.", ".mlp.fc1_x." if gated else ".mlp.fc1.")
    _rename(weights, how, ".mlp.down_proj.", ".mlp.fc2.")
    for number in "12":
        _rename(weights, how, f".ls{number}.gamma", f".gamma_{number}")


def patches_as_kernel(weights: dict[str, Tensor], how: dict[str, str]) -> None:
    """Make SigLIP 2's linear map of a patch (rows, columns, colours) the kernel of a convolution."""
    kernel = weights.get(PATCH)
    side = 0 if kernel is None or kernel.ndim != 2 else round((kernel.shape[1] / 3) ** 0.5)
    if kernel is not None and side and 3 * side * side == kernel.shape[1]:
        weights[PATCH] = kernel.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
        how[PATCH] = "a linear map of flat patches, as a kernel"


def _rename(weights: dict[str, Tensor], how: dict[str, str], old: str, new: str) -> None:
    for key in [key for key in weights if old in key]:
        renamed = key.replace(old, new)
        weights[renamed] = weights.pop(key)
        how[renamed] = f"{old.strip('.')} by another name"


def converted(weights: dict[str, Tensor], steps: tuple[Step, ...]) -> Converted:
    """Return the tensors after all `steps`, and how each new or changed one came about."""
    made, how = dict(weights), dict[str, str]()
    for step in steps:
        step(made, how)
    return made, how
