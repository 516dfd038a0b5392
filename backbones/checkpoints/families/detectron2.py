"""ViTDet in detectron2: a detector's encoder, alone or with the pyramid and the heads, `.pkl` or `.pth`.

Its names are MAE's with the prefix `backbone.net.`. There is no class token (the position table keeps its unused row)
and no final norm. Each block has tables of relative positions that start at zero. If they are still zero, the encoder
is the plain one that the detector started from. If they were trained, they are suspicious: a plain encoder cannot hold
them. Detection runs load such a file whole (det/model/load_weights.py).
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
    """Whether the file has a part of a detector, relative positions, or a position row for an absent class token."""
    rows = weights["pos_embed"].shape[1] if weights["pos_embed"].ndim == 3 else 0
    tokenless = "cls_token" not in weights and rows > 1 and math.isqrt(rows - 1) ** 2 == rows - 1
    return tokenless or any(matches(rule, key) for key in weights for rule in (RELATIVE, *dict(DETECTOR)))


def untouched(weights: Mapping[str, Tensor]) -> bool:
    """Whether it is a ViTDet whose relative positions, if any, are zero, as before training."""
    return of_vitdet(weights) and not any(value.any() for key, value in weights.items() if matches(RELATIVE, key))


def traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return MAE's traits without the class token, which ViTDet lacks."""
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
    unfit=((RELATIVE, "is trained, and a plain encoder cannot hold it (COCO runs load the whole detector, with it)"),),
    traits=traits,
    fits=of_vitdet,
)
