"""Find the call of `timm.create_model` that builds exactly a given encoder: an architecture's name and arguments.

Its pooled feature equals that of `backbones.vit`: the mean of the patch tokens, after the final norm if there is one.
timm's own defaults would pool the class token, or apply the norm after the mean (`fc_norm`), for which an encoder's
file has no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from mimbench.backbones.checkpoints.info import EncoderInfo
from mimbench.backbones.config import SIZES, Traits, ViT

SIZED = {  # other sizes are built from ViT-B with other arguments
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
    "H": "vit_huge_patch14_224",
}
CLIP = "vit_base_patch16_clip_224"  # norms with eps 1e-5 cannot be set by arguments
GATED = "vit_giant_patch14_dinov2"  # neither can gate and value in one matrix (SwiGLU)
CANNOT = "timm's VisionTransformer cannot be this encoder"


def timm_model(state: Mapping[str, Tensor], info: EncoderInfo) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments (plain values) of the model with exactly the tensors of `state`.

    Raises:
        ValueError: if timm's VisionTransformer cannot be this encoder; names the reason.
    """
    if info.traits.positions in ("relative", "rope"):
        raise ValueError(f"{CANNOT}: its positions are {info.traits.positions}, not a table of absolute positions")
    if info.traits.windows is not None:
        raise ValueError(f"{CANNOT}: its blocks attend in windows, and timm's model of that kind needs SAM's neck")
    if info.traits.rope is not None:
        raise ValueError(f"{CANNOT}: it has rotary positions")
    if info.traits.registers and "pos_embed" in state and state["pos_embed"].shape[1] != info.vit.grid**2:
        raise ValueError(f"{CANNOT}: the position table has a row for the class token; timm's with registers has none")
    name = _name(info)
    arguments = {"num_classes": 0, "global_pool": "avg", **_sizes(info.vit, name), **_traits(state, info)}
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    built = {(key, value.shape) for key, value in model.state_dict().items()}
    wrong = sorted(built ^ {(key, value.shape) for key, value in state.items()})
    if wrong:
        raise ValueError(f"{CANNOT}: {wrong[0][0]} has another shape in timm's model, or is not part of it")
    return name, arguments


def _name(info: EncoderInfo) -> str:
    if info.traits.mlp != "mlp":
        return GATED
    if info.traits.norm_eps != Traits().norm_eps:
        return CLIP
    body = (info.vit.width, info.vit.depth, info.vit.heads)
    sizes = {(vit.width, vit.depth, vit.heads): size for size, vit in SIZES.items()}
    return SIZED[sizes.get(body, "B")]


def _sizes(vit: ViT, name: str) -> dict[str, int]:
    """Return the arguments of the encoder's size that the name does not imply."""
    known = next((SIZES[size] for size, sized in SIZED.items() if sized == name), None)
    wanted = {"img_size": "image", "patch_size": "patch", "embed_dim": "width", "depth": "depth", "num_heads": "heads"}
    return {
        argument: getattr(vit, field)
        for argument, field in wanted.items()
        if known is None or getattr(vit, field) != getattr(known, field)
    }


def _traits(state: Mapping[str, Tensor], info: EncoderInfo) -> dict[str, Any]:
    """Return the arguments that differ from timm's defaults, or from those of the name."""
    traits, vit = info.traits, info.vit
    gated = traits.mlp != "mlp"
    hidden = (traits.hidden or 4 * vit.width) * (2 if gated else 1)  # timm's width includes the gate
    rows = state["pos_embed"].shape[1] if "pos_embed" in state else 0
    stated = [
        ("fc_norm", False, info.final_norm),
        ("final_norm", False, not info.final_norm),
        ("class_token", False, not traits.class_token),
        ("reg_tokens", traits.registers, traits.registers > 0),
        ("no_embed_class", True, traits.prefix > 0 and rows == vit.grid**2),
        ("pos_embed", "none", traits.positions == "none"),
        ("pre_norm", traits.pre_norm, traits.pre_norm or _name(info) == CLIP),
        ("init_values", 1e-5 if traits.layer_scale else None, traits.layer_scale or gated),
        ("act_layer", traits.activation, traits.activation != "gelu"),
        ("mlp_ratio", hidden / vit.width, gated or hidden != 4 * vit.width),
        ("qkv_bias", False, not traits.qkv_bias),
    ]
    return {argument: value for argument, value, said in stated if said}
