"""DINOv2, with and without registers, by its authors and by timm: LayerScale, patches of 14, SwiGLU in the giant.

The authors' files hold a mask token; timm's do not. Without registers the authors' code resizes positions by a factor
of (n + .1) / m (`bicubic-offset`); with registers it resizes to the exact size, with antialiasing, as timm always does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.family import SIZES, Family, Signature
from mimbench.backbones.config import Traits

BODY = (
    r"patch_embed\.proj\.weight",
    r"cls_token",
    r"pos_embed",
    r"norm\.weight",
    r"blocks\.\d+(\.\d+)?\.ls1\.gamma",
)
NEVER = (
    r"decoder\w*\..*",
    r".*relative_position\w*",
    r"storage_tokens",
    r"norm_pre\..*",
    r"rope\w*\..*",
    r"dist_token",
)
HEADS = (
    (r"mask_token", "mask token"),
    (r"(dino_head|ibot_head|head)\..*", "projection head"),
)
RENAMES = (
    (r"^register_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # training files group blocks in chunks but keep their numbers
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def gated_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits from timm's names; a gated MLP's first matrix is twice as wide as its second (gate, value)."""
    found = shown(weights)
    first, second = (weights.get(f"blocks.0.mlp.fc{number}.weight") for number in (1, 2))
    if first is None or second is None or len(first) != 2 * second.shape[1]:
        return found
    return replace(found, mlp="swiglu", hidden=second.shape[1])


def of_dinov2(weights: Mapping[str, Tensor]) -> bool:
    """Whether patches have 14 pixels and the width is not 1280: only that distinguishes timm's DINOv2 from DeiT III."""
    kernel = weights["patch_embed.proj.weight"]
    return kernel.shape[-1] == 14 and len(kernel) != 1280


DINOV2 = Family(
    name="dinov2",
    title="DINOv2 (Oquab et al., 2023)",
    signature=Signature(has=(*BODY, r"mask_token"), never=(*NEVER, r"register_tokens")),
    source="facebookresearch/dinov2",
    renames=RENAMES,
    dropped=HEADS,
    positions="learned",
    interpolation="bicubic-offset",
    sizes=SIZES | {(1536, 40)},
    traits=gated_traits,
)
DINOV2_REGISTERS = replace(
    DINOV2,
    title="DINOv2 with registers (Darcet et al., 2023)",
    signature=Signature(has=(*BODY, r"mask_token", r"register_tokens"), never=NEVER),
    interpolation="bicubic-antialias",
)
DINOV2_TIMM = replace(
    DINOV2_REGISTERS,
    title="DINOv2 (Oquab et al., 2023), by timm",
    signature=Signature(has=BODY, never=(*NEVER, r"mask_token", r"register_tokens")),
    source="timm's vit_*_dinov2",
    renames=(),
    dropped=((r"head\.(weight|bias)", "classification head"),),
    models=r"vit_\w+_dinov2",
    fits=of_dinov2,
)
