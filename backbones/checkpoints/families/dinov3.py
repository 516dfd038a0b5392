"""DINOv3's ViTs, by its authors and by timm: rotary positions, registers, LayerScale, SwiGLU in some.

Keys have no bias: the authors' files hold a bias for query, key and value and a mask that zeroes the middle third. If
that mask is missing and the middle third is not zero, or the mask is NaN (a model that was never initialised), the bias
is left unchanged and refused as suspicious. The file does not tell the size of the pretraining images, which is 256
pixels in the paper; rotary positions do not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.family import Converted, Family, Signature
from mimbench.backbones.config import Traits
from mimbench.backbones.rotary import rotary_periods

PRETRAINED_ON = 256  # pixels
NOTES = ("the file does not tell the size of its pretraining images: assumed 256 pixels, as in the paper",)
BODY = (r"patch_embed\.proj\.weight", r"cls_token", r"norm\.weight")
NEVER = (r"pos_embed", r"decoder\w*\..*", r".*relative_position\w*", r"norm_pre\..*")


def dinov3_heads(width: int) -> int:
    """Return the number of heads: 64 channels per head, but 128 in the 7B model (width 4096)."""
    return 32 if width == 4096 else max(width // 64, 1)


def dinov3_grid(weights: Mapping[str, Tensor]) -> int:
    """Return the patches along one side of a pretraining image of 256 pixels."""
    return max(PRETRAINED_ON // weights["patch_embed.proj.weight"].shape[-1], 1)


def rotary_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits from the names of timm's Eva."""
    width = len(weights["patch_embed.proj.weight"])
    gate, last = weights.get("blocks.0.mlp.fc1_g.weight"), weights.get("blocks.0.mlp.fc2.weight")
    hidden = 4 * width if last is None else last.shape[1]
    return Traits(
        registers=weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        positions="rope",
        layer_scale="blocks.0.gamma_1" in weights,
        mlp="mlp" if gate is None else "swiglu_split",
        hidden=None if hidden == 4 * width else hidden,
        patch_bias="patch_embed.proj.bias" in weights,
        qkv_bias="blocks.0.attn.q_bias" in weights,
        norm_eps=1e-5,
    )


def split_bias(weights: dict[str, Tensor]) -> Converted:
    """Keep the bias of query and value if the key's is masked; the mask is consumed."""
    made = {key: value for key, value in weights.items() if not key.endswith((".qkv.bias", ".qkv.bias_mask"))}
    how: dict[str, str] = {}
    for key in [key for key in weights if key.endswith(".qkv.bias")]:
        bias, mask = weights[key], weights.get(f"{key}_mask")
        query, middle, value = (bias if mask is None else bias * mask.to(bias.dtype)).chunk(3)
        if middle.any() or not torch.cat([query, value]).isfinite().all():
            made[key] = bias
            continue
        attention = key.removesuffix("qkv.bias")
        for name, part in (("q_bias", query), ("v_bias", value)):
            made[attention + name] = part
            how[attention + name] = "the queries' and the values' parts of the bias; the keys' is masked"
    return made, how


def with_periods(weights: dict[str, Tensor]) -> Converted:
    """Add the periods of the rotary positions, which timm's files lack."""
    width = len(weights["patch_embed.proj.weight"])
    periods = rotary_periods(width // dinov3_heads(width))
    return {**weights, "rope.periods": periods}, {"rope.periods": "computed as DINOv3 does, from base 100"}


_dinov3 = partial(
    Family,
    name="dinov3",
    positions="rope",
    notes=NOTES,
    sizes=frozenset({(192, 12), (384, 12), (768, 12), (1024, 24), (1280, 32), (1536, 40), (4096, 40)}),
    heads=dinov3_heads,
    grid=dinov3_grid,
    traits=rotary_traits,
)
DINOV3 = _dinov3(
    title="DINOv3 (Simeoni et al., 2025)",
    signature=Signature(has=(*BODY, r"rope_embed\.periods", r"blocks\.\d+\.norm1\.weight"), never=NEVER),
    source="facebookresearch/dinov3",
    renames=(
        (r"^storage_tokens$", "reg_token"),
        (r"^rope_embed\.", "rope."),
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"\.mlp\.w1\.", ".mlp.fc1_g."),
        (r"\.mlp\.w2\.", ".mlp.fc1_x."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    ),
    convert=split_bias,
    dropped=(
        (r"mask_token", "mask token"),
        (r"local_cls_norm\..*", "norm of small crops, of pretraining alone"),
        (r"(dino_head|ibot_head)\..*", "projection head"),
    ),
)
DINOV3_TIMM = _dinov3(
    title="DINOv3 (Simeoni et al., 2025), by timm",
    signature=Signature(
        has=(*BODY, r"reg_token", r"blocks\.\d+\.gamma_1", r"blocks\.\d+\.attn\.qkv\.weight"),
        never=(*NEVER, r"rope\w*\..*", r"blocks\.\d+\.attn\.(norm|q_norm|inner_attn_ln)\..*", r"mask_token"),
    ),
    source="timm's vit_*_dinov3",
    convert=with_periods,
    dropped=((r"head\.(weight|bias)", "classification head"), (r"fc_norm\..*", "norm of the classification head")),
)
