"""Mask R-CNN and Cascade on LVIS v1 as in detectron2's ViTDet project: 100 epochs, federated loss, images repeated.

Reference numbers of Mask R-CNN (box AP / mask AP, MAE encoders, LVIS v1 val): B 40.2 / 38.2, L 46.1 / 43.6,
H 49.1 / 46.0. Data: COCO's images and annotations/lvis_v1_{train,val}.json (det/data/lvis.py).
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep, mask_rcnn_vitdet_h_75ep, mask_rcnn_vitdet_l_100ep


def lvis_mask_rcnn_vitdet_b_100ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, 100 epochs of LVIS v1. MAE: 40.2 box AP, 38.2 mask AP.

    mimbench run det/lvis_mask_rcnn_vitdet_b_100ep data=coco checkpoint=encoder.safetensors
    """
    return _on_lvis(mask_rcnn_vitdet_b_100ep(), lr=2e-4)


def lvis_mask_rcnn_vitdet_l_100ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, 100 epochs of LVIS v1. MAE: 46.1 box AP, 43.6 mask AP."""
    return _on_lvis(mask_rcnn_vitdet_l_100ep(), lr=2e-4)


def lvis_mask_rcnn_vitdet_h_100ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, 100 epochs of LVIS v1. MAE: 49.1 box AP, 46.0 mask AP."""
    base = mask_rcnn_vitdet_h_75ep()
    return _on_lvis(replace(base, vitdet=replace(base.vitdet, drop_path=0.4)), lr=1e-4)


def lvis_cascade_mask_rcnn_vitdet_b_100ep() -> MaskRCNNConfig:
    """Cascade Mask R-CNN, ViTDet-B, 100 epochs of LVIS v1."""
    return _cascade(lvis_mask_rcnn_vitdet_b_100ep())


def lvis_cascade_mask_rcnn_vitdet_l_100ep() -> MaskRCNNConfig:
    """Cascade Mask R-CNN, ViTDet-L, 100 epochs of LVIS v1."""
    return _cascade(lvis_mask_rcnn_vitdet_l_100ep())


def lvis_cascade_mask_rcnn_vitdet_h_100ep() -> MaskRCNNConfig:
    """Cascade Mask R-CNN, ViTDet-H, 100 epochs of LVIS v1."""
    return _cascade(lvis_mask_rcnn_vitdet_h_100ep())


def _on_lvis(base: MaskRCNNConfig, lr: float) -> MaskRCNNConfig:
    """Return `base` for LVIS: 156,250 steps of 64 (100 epochs of 100,000 images), 300 detections, low threshold."""
    return replace(
        base,
        benchmark="lvis",
        repeat=0.001,
        heads=replace(base.heads, class_loss="federated", score_threshold=0.02, detections=300),
        steps=156_250,
        warmup=250.0,
        milestones=(138_889, 150_463),
        lr=lr,
    )


def _cascade(base: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(base, heads=replace(base.heads, cascade=True))
