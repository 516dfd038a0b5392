"""Mask R-CNN on ViTDet for encoders whose size no published recipe has: ViT-S and any other width or depth.

NOT PUBLISHED: the settings of the published size of about this depth. By depth, because layer decay and stochastic
depth are rates per block: .7 and .1 for 12 blocks (ViT-B), .8 and .4 for 24 (ViT-L), .9 and .5 beyond (ViT-H, PE's
encoders). For DINOv2-S, ViT-Adapter's Mask R-CNN was best with a layer decay of .7 (.7 to .95 tried: 51.5 to 48.8 box
AP; czczup/ViT-Adapter, configs/mask_rcnn/dinov2). Beyond ViT-H the rate is PE's for its encoders of more than a billion
parameters. `mimbench evaluate --on coco` chooses by the file.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import SIZES, ViT
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep, mask_rcnn_vitdet_h_75ep, mask_rcnn_vitdet_l_100ep


def vitdet_scaled_12_blocks_100ep() -> MaskRCNNConfig:
    """NOT PUBLISHED: Mask R-CNN on an encoder of up to 16 blocks, as ViT-S, with ViT-B's settings. 100 epochs of COCO.

    mimbench evaluate vit_small.pth --on coco --data coco=PATH
    """
    return _scaled(mask_rcnn_vitdet_b_100ep(), SIZES["S"])


def vitdet_scaled_24_blocks_100ep() -> MaskRCNNConfig:
    """NOT PUBLISHED: Mask R-CNN on an encoder of 17 to 28 blocks with ViT-L's settings. 100 epochs of COCO."""
    return _scaled(mask_rcnn_vitdet_l_100ep(), SIZES["L"])


def vitdet_scaled_32_blocks_75ep() -> MaskRCNNConfig:
    """NOT PUBLISHED: Mask R-CNN on an encoder of 29 to 36 blocks with ViT-H's settings. 75 epochs of COCO."""
    return _scaled(mask_rcnn_vitdet_h_75ep(), SIZES["H"])


def vitdet_scaled_40_blocks_75ep() -> MaskRCNNConfig:
    """NOT PUBLISHED: Mask R-CNN on an encoder of more than 36 blocks, ViT-H's settings, half its rate. 75 epochs."""
    giant = ViT(1408, 40, 16, patch=14, image=224)  # ViT-g's sizes
    return replace(_scaled(mask_rcnn_vitdet_h_75ep(), giant), lr=5e-5)


def _scaled(published: MaskRCNNConfig, encoder: ViT) -> MaskRCNNConfig:
    """Return `published` for another encoder, with windows that fit it."""
    return replace(published, encoder=encoder, vitdet=replace(published.vitdet, window=None))
