"""Why some model types of transformers are not taken, of those that people try."""

from __future__ import annotations

from collections.abc import Mapping

_PYRAMID = "its stages have other widths and grids, and encoders here have one of each"
_CONVOLUTIONS = "it is a convolutional network"
_VIDEO = "it embeds video"
_TIMM = "it wraps a model of timm's; give timm's own file"
_TOKENS = "its tokens are not a class token, registers and patches"
REASONS: Mapping[str, str] = {
    **dict.fromkeys(("hiera", "swin", "swinv2", "maskformer-swin", "segformer", "pvt", "pvt_v2", "dinat"), _PYRAMID),
    **dict.fromkeys(("levit", "mobilevit", "mobilevitv2", "efficientformer", "swiftformer", "sam2"), _PYRAMID),
    **dict.fromkeys(
        ("convnext", "convnextv2", "dinov3_convnext", "resnet", "regnet", "efficientnet", "bit"), _CONVOLUTIONS
    ),
    **dict.fromkeys(("vivit", "videomae", "vjepa2", "timesformer"), _VIDEO),
    "timm_backbone": _TIMM,
    **dict.fromkeys(("yolos", "pixio"), _TOKENS),
}
