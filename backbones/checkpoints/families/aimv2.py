"""AIMv2: RMS norms, SwiGLU, no class token, heads of 128 channels, and biases only in the patch embedding.

Apple's own files, for torch and for MLX, name the parts `preprocessor` and `trunk`; MLX keeps the colours of a kernel
last. The native encoder takes images of any size: it has no table of positions and computes MAE's fixed one for the
grid of each image, which is `positions=regenerate` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mimbench.backbones.checkpoints.families.clip import MEAN, STD
from mimbench.backbones.checkpoints.family import Converted, Family, Signature
from mimbench.backbones.config import Traits


def aimv2_heads(width: int) -> int:
    """Return the number of heads: 128 channels per head in all sizes."""
    return max(width // 128, 1)


def aimv2_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return an encoder's traits; only the width inside the MLP differs between sizes."""
    last = weights.get("blocks.0.mlp.fc2.weight")
    return Traits(
        class_token=False,
        mlp="swiglu_split",
        hidden=None if last is None else last.shape[1],
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        norm="rms",
        norm_eps=1e-5,
        patch_norm=True,
    )


def channels_first(weights: dict[str, Tensor]) -> Converted:
    """Move the colours of MLX's patch kernel (D, p, p, 3) to where torch has them."""
    kernel = weights.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] == 3 or kernel.shape[3] != 3:
        return weights, {}
    moved = {**weights, "patch_embed.proj.weight": kernel.permute(0, 3, 1, 2).contiguous()}
    return moved, {"patch_embed.proj.weight": "from MLX, whose kernels have the colours last"}


def native_grid(_weights: Mapping[str, Tensor]) -> int:
    """Return the patches along one side at 224 pixels; the native encoder was pretrained on many sizes."""
    return 16


_aimv2 = partial(
    Family,
    name="aimv2",
    mean=MEAN,
    std=STD,
    models=r"aimv2_\w+",
    sizes=frozenset({(768, 12), (1024, 24), (1536, 24), (2048, 24), (3072, 24)}),
    heads=aimv2_heads,
    traits=aimv2_traits,
)
_apples = partial(
    _aimv2,
    source="apple/ml-aim, aim-v2",
    renames=(
        (r"^image_encoder\.", ""),
        (r"^trunk\.", ""),
        (r"^preprocessor\.patchifier\.", "patch_embed."),
        (r"^preprocessor\.pos_embed$", "pos_embed"),
        (r"\.norm_([12])\.", r".norm\1."),
        (r"\.mlp\.fc1\.", ".mlp.fc1_g."),
        (r"\.mlp\.fc3\.", ".mlp.fc1_x."),
        (r"^post_trunk_norm\.", "norm."),
    ),
    convert=channels_first,
    dropped=(
        (r"(image_encoder\.)?head\..*", "attention pool"),
        (r"text_encoder\..*", "text tower"),
        (r"(image|text)_projector\.weight", "projection into the space of text"),
        (r"log_logit_scale", "a number beside the towers"),
    ),
)
PATCHES = r"(image_encoder\.)?preprocessor\.patchifier\.norm\.weight"
GATED = r"(image_encoder\.)?(trunk\.)?blocks\.\d+\.mlp\.fc3\.weight"
TABLE = r"(image_encoder\.)?preprocessor\.pos_embed"
AIMV2 = _apples(
    title="AIMv2 (Fini et al., 2024)",
    signature=Signature(has=(PATCHES, GATED, TABLE)),
    positions="learned",
    interpolation="bicubic-antialias",
)
AIMV2_NATIVE = _apples(
    title="AIMv2 (Fini et al., 2024), native, for images of any size",
    signature=Signature(has=(PATCHES, GATED), never=(TABLE,)),
    missing=("pos_embed",),
    grid=native_grid,
    positions="sincos",
    interpolation="regenerate",
    notes=("positions are computed for the grid of each image, as the authors do",),
)
AIMV2_TIMM = _aimv2(
    title="AIMv2 (Fini et al., 2024), by timm",
    signature=Signature(
        has=(r"patch_embed\.norm\.weight", r"pos_embed", r"norm\.weight", r"blocks\.\d+\.mlp\.fc1_g\.weight"),
        never=(r"cls_token", r".*norm\d?\.bias", r"blocks\.\d+\.attn\.\w+\.bias"),
    ),
    source="timm's aimv2_*",
    dropped=((r"head\.(weight|bias)", "classification head"), (r"attn_pool\..*", "attention pool")),
    positions="learned",
    interpolation="bicubic-antialias",
)
