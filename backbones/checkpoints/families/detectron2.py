"""ViTDet in detectron2: the encoder of a detector, alone or with the pyramid and the heads, `.pkl` or `.pth`.

Its names are MAE's under `backbone.net.`. There is no class token, whose row of the position table is not used, and no
final norm. Most blocks attend in windows, and each has tables of relative positions that start at zero; where they are
still zero the encoder is the plain one that the detector started from. Where they were trained they are suspicious: a
plain encoder has no place for them. Detection runs take such a file whole (det/model/load_weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from mimbench.backbones.checkpoints.family import Family, Signature, matches
from mimbench.backbones.config import Traits

RELATIVE = r"blocks\.\d+\.attn\.rel_pos_[hw]"
DETECTOR = (
    (r"simfp_\d+\..*", "pyramid"),
    (r"proposal_generator\..*", "proposal head"),
    (r"roi_heads\..*", "box and mask heads"),
    (r"pixel_(mean|std)", "mean and deviation of the images"),
)
SIGNATURE = Signature(
    has=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.qkv\.weight", r"pos_embed"),
    never=(r"(fc_)?norm\.(weight|bias)", r"neck\..*", r"blocks\.\d+\.(ls1\.)?gamma.*", r"decoder.*", r"head\..*"),
)  # a `neck` is SAM's


def of_vitdet(weights: Mapping[str, Tensor]) -> bool:
    """There is a detector's part or a relative position in it, or else a row for a class token that is not there."""
    rows = weights["pos_embed"].shape[1] if weights["pos_embed"].ndim == 3 else 0
    tokenless = "cls_token" not in weights and rows > 1 and math.isqrt(rows - 1) ** 2 == rows - 1
    return tokenless or any(matches(rule, key) for key in weights for rule in (RELATIVE, *dict(DETECTOR)))


def untouched(weights: Mapping[str, Tensor]) -> bool:
    """It is a ViTDet whose relative positions, if there are any, are zero, as they are before training."""
    return of_vitdet(weights) and not any(value.any() for key, value in weights.items() if matches(RELATIVE, key))


def traits(weights: Mapping[str, Tensor]) -> Traits:
    """MAE's, but for the class token, which ViTDet has not."""
    return Traits(class_token="cls_token" in weights)


START = Family(
    name="detectron2",
    title="ViTDet in detectron2 (Li et al., 2022), without relative positions",
    signature=SIGNATURE,
    source="facebookresearch/detectron2, projects/ViTDet",
    dropped=(*DETECTOR, (RELATIVE, "relative positions that are zero")),
    traits=traits,
    fits=untouched,
)
TRAINED = Family(
    name="detectron2",
    title="ViTDet in detectron2 (Li et al., 2022), with relative positions",
    signature=SIGNATURE,
    source="facebookresearch/detectron2, projects/ViTDet",
    dropped=DETECTOR,
    unfit=(
        (RELATIVE, "is trained, and a plain encoder has no place for it (COCO runs take a whole detector, with it)"),
    ),
    traits=traits,
    fits=of_vitdet,
)
