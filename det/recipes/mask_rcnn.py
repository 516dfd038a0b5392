"""Detection recipes: functions that return a complete config.

The published ones are detectron2's ViTDet project (Li et al. 2022, "Exploring plain vision transformer backbones
for object detection"): 1024-pixel large-scale jitter, batch 64, AdamW. Reference numbers (box AP / mask AP, MAE
encoders, COCO val2017): B 51.6 / 45.9, L 55.6 / 49.2, H 56.7 / 50.1.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import HANDWRITTEN, SIZES
from mimbench.det.config import Augment, Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.engine.run.config import Compute
from mimbench.engine.run.cost import costs


@costs(days=5, gpus=8)
def mask_rcnn_vitdet_b_100ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-B, 100 epochs of COCO. MAE: 51.6 box AP, 45.9 mask AP.

    mimbench run det/mask_rcnn_vitdet_b_100ep data=coco checkpoint=encoder.safetensors
    """
    return MaskRCNNConfig(
        data="coco", vitdet=ViTDetConfig(patch=16)
    )  # all published sizes run at patch 16, ViT-H's 14 resampled


@costs(days=10, gpus=8)
def mask_rcnn_vitdet_l_100ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-L, 100 epochs of COCO. MAE: 55.6 box AP, 49.2 mask AP."""
    base = mask_rcnn_vitdet_b_100ep()
    return replace(
        base,
        encoder=SIZES["L"],
        vitdet=replace(base.vitdet, drop_path=0.4),
        layer_decay=0.8,
    )


@costs(days=14, gpus=8)
def mask_rcnn_vitdet_h_75ep() -> MaskRCNNConfig:
    """Mask R-CNN, ViTDet-H, 75 epochs of COCO. MAE: 56.7 box AP, 50.1 mask AP."""
    base = mask_rcnn_vitdet_b_100ep().scaled(75, 100)
    return replace(
        base,
        encoder=SIZES["H"],
        vitdet=replace(base.vitdet, drop_path=0.5),
        layer_decay=0.9,
        decay_norms=True,
    )


def mask_rcnn_handwritten() -> MaskRCNNConfig:
    """Mask R-CNN on handwritten, detecting digits as a single class: the demo, about a minute on one CPU core.

    Images have the encoder's pretraining size, so its positions are not interpolated: on a larger grid this small
    encoder loses its advantage. Digits are not classified: heads that see a digit aligned in its box recognise it from
    the patches, with or without a pretrained encoder (NOTES.md).
    """
    return MaskRCNNConfig(
        data="handwritten",
        single_class=True,
        encoder=HANDWRITTEN,
        # the window is the image; strides 4, 8, 16 and, for proposals, 32
        vitdet=ViTDetConfig(window=8, global_blocks=(3,), drop_path=0.0, channels=32, scales=(2.0, 1.0, 0.5)),
        proposals=Proposals(
            convs=1,
            anchor_sizes=(20.0, 28.0, 38.0, 50.0),
            anchor_ratios=(1.5,),  # digits are higher than wide
            samples=64,
            before_nms=(200, 200),
            after_nms=(100, 60),
        ),
        heads=Heads(samples=32, convs=1, channels=32, fc=64, detections=30),
        augment=Augment(flip=0.0, smallest=0.75, largest=1.3),  # flipped digits are unreadable
        image=64,
        steps=200,
        batch=10,
        lr=1.5e-3,
        warmup=20.0,
        milestones=(160, 187),
        layer_decay=0.8,
        weight_decay=0.05,
        grad_clip=1.0,
        eval_batch=8,
        compute=Compute(precision="fp32", workers=0, log_every=10, save_every=100),
    )


def mask_rcnn_frozen_handwritten() -> MaskRCNNConfig:
    """Mask R-CNN on a frozen encoder on handwritten, detecting digits as a single class: a minute on one CPU core."""
    base = mask_rcnn_handwritten()
    return replace(
        base,
        vitdet=replace(base.vitdet, rel_pos=False, frozen=True),
        batch=32,
        lr=1e-3,
        layer_decay=1.0,
    )
