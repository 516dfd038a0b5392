"""Mask R-CNN on a frozen encoder: only the pyramid and the heads are trained. One recipe for encoders of every size.

The encoder stays in eval mode, without gradients or optimiser state. It is used as in its own pretraining where that is
possible: its final norm, its class token and registers in global blocks, its pretraining grid as window, and patches
resampled by pseudo-inverse, which keeps their responses. The metrics have names of their own (`frozen_12ep_box_ap`),
because they do not compare with those of encoders that are trained.

Costs are detectron2's seconds per image times the share of the operations that remain (det/cost.py), in hours of 8 A100
for ViT-B and ViT-L. A step has 64 images, 8 at a time on one GPU. `mimbench memory RECIPE` prints the memory.

No reference numbers exist for `mask_rcnn_frozen_...`; the layer probe is that of the Perception Encoder (arXiv
2504.13181, appendix B.3.3), whose results are printed as curves only (figures 8 and 16).
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.det.config import MaskRCNNConfig, ViTDetConfig
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep
from mimbench.engine.run.config import Compute

WHOLE = 100  # epochs of the schedule that is scaled
PARTS = 8  # micro-batches of a step on one GPU


def mask_rcnn_frozen_12ep() -> MaskRCNNConfig:
    """Mask R-CNN on a frozen encoder of any size, 12 epochs of COCO. About 9 h (B) or 14 h (L) on 8 A100.

    mimbench evaluate encoder.safetensors --on coco_frozen --data coco=PATH
    """
    return _frozen(12)


def mask_rcnn_frozen_25ep() -> MaskRCNNConfig:
    """Mask R-CNN on a frozen encoder of any size, 25 epochs of COCO. About 19 h (B) or 28 h (L) on 8 A100."""
    return _frozen(25)


def mask_rcnn_frozen_36ep() -> MaskRCNNConfig:
    """Mask R-CNN on a frozen encoder of any size, 36 epochs of COCO. About 28 h (B) or 40 h (L) on 8 A100."""
    return _frozen(36)


def mask_rcnn_layer_probe_15ep() -> MaskRCNNConfig:
    """Mask R-CNN on one layer of a frozen encoder, 15 epochs: PE's layer probe. About 11 h (B) on 8 A100.

    The image is cut into windows of 32 patches of 16 pixels, and no block attends globally. `vitdet.layer=N` takes the
    map of block N (1 to the depth) and does not compute the later blocks; without it, the last one. PE also probes at
    768 pixels: image=768 vitdet.window=24. The learning rate is not printed; it is ViTDet's.

    mimbench evaluate encoder.safetensors --on coco_layer_probe --data coco=PATH coco_layer_probe.vitdet.layer=20
    """
    return replace(
        _frozen(15),
        vitdet=ViTDetConfig(
            patch=16, window=32, global_blocks=(), rel_pos=False, drop_path=0.0, positions="tile", frozen=True
        ),
    )


def _frozen(epochs: int) -> MaskRCNNConfig:
    """Return the frozen protocol of `epochs`."""
    base = mask_rcnn_vitdet_b_100ep().scaled(epochs, WHOLE)
    return replace(
        base,
        vitdet=ViTDetConfig(
            patch=16,
            window=None,
            rel_pos=False,
            drop_path=0.0,
            prefix="global",
            norm="own",
            kernel="pseudo-inverse",
            frozen=True,
        ),
        layer_decay=1.0,  # no layer of the encoder is trained
        schedule=f"{epochs}ep",
        compute=Compute(accumulate=PARTS),
    )
