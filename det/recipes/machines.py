"""Mask R-CNN on ViTDet for common machines: one node of 8 GPUs, or one GPU of 24 GB.

The first three of each kind do not change the result: a step has 64 images, processed a few at a time, and the losses
equal those of 64 GPUs with one image each. They have the same identity as the published recipes. `..._24gb_640px`
deviate: smaller images and fewer regions, a different result in a fifth of the time. `mimbench memory RECIPE` prints
the memory that a recipe needs.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep, mask_rcnn_vitdet_h_75ep, mask_rcnn_vitdet_l_100ep


def mask_rcnn_vitdet_b_100ep_8gpu() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, on 8 GPUs of 40 GB: two images at a time. 51.6 box AP, about 5 days on A100."""
    return _parts(mask_rcnn_vitdet_b_100ep(), 4)


def mask_rcnn_vitdet_l_100ep_8gpu() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, on 8 GPUs of 40 GB: one image at a time. 55.6 box AP, about 10 days on A100."""
    return _parts(mask_rcnn_vitdet_l_100ep(), 8)


def mask_rcnn_vitdet_h_75ep_8gpu() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, on 8 GPUs of 80 GB (40 GB with recompute=true). 56.7 box AP, about 14 days on A100."""
    return _parts(mask_rcnn_vitdet_h_75ep(), 8)


def mask_rcnn_vitdet_b_100ep_24gb() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, on one GPU of 24 GB: one image at a time, 64 to a step. Weeks; the published result."""
    return _parts(mask_rcnn_vitdet_b_100ep(), 64)


def mask_rcnn_vitdet_l_100ep_24gb() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, on one GPU of 24 GB: one image at a time, activations computed twice."""
    return replace(_parts(mask_rcnn_vitdet_l_100ep(), 64), recompute=True)


def mask_rcnn_vitdet_h_75ep_24gb() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, on one GPU of 24 GB: one image at a time, activations computed twice."""
    return replace(_parts(mask_rcnn_vitdet_h_75ep(), 64), recompute=True)


def mask_rcnn_vitdet_b_25ep_24gb_640px() -> MaskRCNNConfig:
    """DEVIATION: ViTDet-B at 640 px with half the regions, 25 epochs, on one GPU of 24 GB. Days; lower AP."""
    return _smaller(replace(_parts(mask_rcnn_vitdet_b_100ep().scaled(25, 100), 16), recompute=True))


def mask_rcnn_vitdet_l_25ep_24gb_640px() -> MaskRCNNConfig:
    """DEVIATION: ViTDet-L at 640 px with half the regions, 25 epochs, on one GPU of 24 GB. Days; lower AP."""
    return _smaller(replace(_parts(mask_rcnn_vitdet_l_100ep().scaled(25, 100), 32), recompute=True))


def _parts(base: MaskRCNNConfig, parts: int) -> MaskRCNNConfig:
    """Return `base` with each step divided into `parts` micro-batches on each GPU."""
    return replace(base, compute=replace(base.compute, accumulate=parts))


def _smaller(base: MaskRCNNConfig) -> MaskRCNNConfig:
    """Return `base` with images of 640 pixels, half the proposals and half the regions in the losses."""
    proposals = replace(base.proposals, before_nms=(1000, 1000), after_nms=(500, 1000))
    return replace(base, image=640, proposals=proposals, heads=replace(base.heads, samples=256))
