"""AIMv2 by timm: RMS norms, SwiGLU, no class token, heads of 128 channels, and biases only in the patch embedding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimbench.backbones.checkpoints.families.clip import MEAN, STD
from mimbench.backbones.checkpoints.family import Family, Signature
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


AIMV2_TIMM = Family(
    name="aimv2",
    title="AIMv2 (Fini et al., 2024), by timm",
    signature=Signature(
        has=(r"patch_embed\.norm\.weight", r"pos_embed", r"norm\.weight", r"blocks\.\d+\.mlp\.fc1_g\.weight"),
        never=(r"cls_token", r".*norm\d?\.bias", r"blocks\.\d+\.attn\.\w+\.bias"),
    ),
    source="timm's aimv2_*",
    dropped=((r"head\.(weight|bias)", "classification head"), (r"attn_pool\..*", "attention pool")),
    positions="learned",
    interpolation="bicubic-antialias",
    mean=MEAN,
    std=STD,
    sizes=frozenset({(1024, 24), (1536, 24), (2048, 24), (3072, 24)}),
    heads=aimv2_heads,
    traits=aimv2_traits,
)
