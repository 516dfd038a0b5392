"""Operations and parameters of ViTDet Mask R-CNN at its published sizes, for the table of compute costs.

Counted by torch: fvcore cannot trace a convolution on `meta`, and a ViT-H detector with values is too large to run for
a table. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mimbench.backbones.config import ViT
from mimbench.det.cost import COUNTED_AS
from mimbench.det.model.build import build_detector
from mimbench.det.recipes.mask_rcnn import (
    mask_rcnn_vitdet_b_100ep,
    mask_rcnn_vitdet_h_75ep,
    mask_rcnn_vitdet_l_100ep,
)
from mimbench.engine.training.counting import Counted, count, operations

RECIPES = {"B": mask_rcnn_vitdet_b_100ep, "L": mask_rcnn_vitdet_l_100ep, "H": mask_rcnn_vitdet_h_75ep}


def detectors(sizes: str = "BLH") -> Iterator[Counted]:
    """Yield the counts of ViTDet Mask R-CNN at each published size: 1024 pixels, 1000 proposals, 100 detections."""
    for size, recipe in RECIPES.items():
        if size not in sizes:
            continue
        config = recipe()
        with torch.device("meta"):
            model, _ = build_detector(replace(config, encoder=_patch16(config.encoder)), classes=80)
        backbone, rest = _detector_operations(model, config.image)
        numbers = (count(model), backbone, rest, backbone + rest, None)
        yield Counted(size, "Mask R-CNN", f"ViT-{size}/16", COUNTED_AS, *numbers)


def _patch16(encoder: ViT) -> ViT:
    """Return the encoder with 16-pixel patches: detection resamples 14-pixel ones, which needs values."""
    return replace(encoder, patch=16)


def _detector_operations(model: Any, image: int) -> tuple[float, float]:
    """Return the operations of the plain ViT and of everything detection adds."""
    heads, side = model.roi_heads, 2 * 7
    with torch.device("meta"), torch.no_grad():
        images = torch.zeros(1, 3, image, image)
        plain = operations(model.backbone.net, images)
        whole = operations(model.backbone, images)
        maps = model.backbone(images)
        boxes = torch.zeros(1000, maps[0].shape[1], 7, 7)
        masks, labels = torch.zeros(100, maps[0].shape[1], side, side), torch.zeros(100, dtype=torch.long)
        rest = operations(model.proposal_generator.rpn_head, maps)
        rest += operations(nn.Sequential(heads.box_head), boxes) + operations(heads.mask_head, masks, labels)
        rest += operations(heads.box_predictor, heads.box_head(boxes))
    return plain, whole - plain + rest
