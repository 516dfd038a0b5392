"""Mask R-CNN on ViTDet, trained for fewer epochs than published: 12, 25, 36 and 50.

Their metrics have the length in their names (`short_12ep_box_ap`), so that no table mixes them with published lengths.
Only the length differs from the published recipes: the whole schedule, including warm-up, is scaled, as detectron2
derives ViTDet-H's 75 epochs from 100. Reference numbers are those of the published lengths.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep, mask_rcnn_vitdet_h_75ep, mask_rcnn_vitdet_l_100ep
from mimbench.engine.run.cost import costs

WHOLE = 100  # epochs of the full schedule


@costs(days=0.64, gpus=8)
def mask_rcnn_vitdet_b_12ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, 12 epochs of COCO."""
    return _short(mask_rcnn_vitdet_b_100ep(), 12)


@costs(days=1.3, gpus=8)
def mask_rcnn_vitdet_b_25ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, 25 epochs of COCO."""
    return _short(mask_rcnn_vitdet_b_100ep(), 25)


@costs(days=2, gpus=8)
def mask_rcnn_vitdet_b_36ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, 36 epochs of COCO."""
    return _short(mask_rcnn_vitdet_b_100ep(), 36)


@costs(days=2.7, gpus=8)
def mask_rcnn_vitdet_b_50ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, 50 epochs of COCO."""
    return _short(mask_rcnn_vitdet_b_100ep(), 50)


@costs(days=1.2, gpus=8)
def mask_rcnn_vitdet_l_12ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, 12 epochs of COCO."""
    return _short(mask_rcnn_vitdet_l_100ep(), 12)


@costs(days=2.6, gpus=8)
def mask_rcnn_vitdet_l_25ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, 25 epochs of COCO."""
    return _short(mask_rcnn_vitdet_l_100ep(), 25)


@costs(days=3.7, gpus=8)
def mask_rcnn_vitdet_l_36ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, 36 epochs of COCO."""
    return _short(mask_rcnn_vitdet_l_100ep(), 36)


@costs(days=5, gpus=8)
def mask_rcnn_vitdet_l_50ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, 50 epochs of COCO."""
    return _short(mask_rcnn_vitdet_l_100ep(), 50)


@costs(days=2.2, gpus=8)
def mask_rcnn_vitdet_h_12ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, 12 epochs of COCO."""
    return _huge(12)


@costs(days=4.7, gpus=8)
def mask_rcnn_vitdet_h_25ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, 25 epochs of COCO."""
    return _huge(25)


@costs(days=6.7, gpus=8)
def mask_rcnn_vitdet_h_36ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, 36 epochs of COCO."""
    return _huge(36)


@costs(days=9.3, gpus=8)
def mask_rcnn_vitdet_h_50ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, 50 epochs of COCO."""
    return _huge(50)


def _huge(epochs: int) -> MaskRCNNConfig:
    """Return ViTDet-H with the 100-epoch schedule scaled to `epochs`."""
    whole = mask_rcnn_vitdet_b_100ep()
    huge = replace(mask_rcnn_vitdet_h_75ep(), steps=whole.steps, warmup=whole.warmup, milestones=whole.milestones)
    return _short(huge, epochs)


def _short(whole: MaskRCNNConfig, epochs: int) -> MaskRCNNConfig:
    """Return `whole` with its 100-epoch schedule scaled to `epochs`, and metrics that name this length."""
    return replace(whole.scaled(epochs, WHOLE), schedule=f"{epochs}ep")
