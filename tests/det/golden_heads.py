"""Writes golden_heads.json: Cascade Mask R-CNN and LVIS's class losses, by detectron2, on images longer one way.

PYTHONPATH=detectron2's checkout python tests/det/golden_heads.py
"""

from __future__ import annotations

import json
import sys
from typing import Any

import tiny
import torch
from detectron2.config import get_cfg
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA
from golden_model import (
    HERE,
    box_head,
    box_predictor,
    common,
    detectron2_detector,
    inputs,
    matcher,
    run,
    same_samples,
    standard_heads,
    state_of,
)
from torch import nn

SIGMOID: dict[str, Any] = {"use_sigmoid_ce": True}
FEDERATED: dict[str, Any] = {
    **SIGMOID,
    "use_fed_loss": True,
    "classes": 8,
    "fed_loss_num_classes": 6,
    "get_fed_loss_cls_weights": lambda: torch.tensor(tiny.SEEN_IN).float() ** 0.5,
}


def cascade_heads(classes: int = 3, **changes: Any) -> StandardROIHeads:
    """Cascade Mask R-CNN's; `changes` of the predictors."""
    weights = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]
    return CascadeROIHeads(
        box_heads=[box_head() for _ in weights],
        box_predictors=[box_predictor(of, classes, cls_agnostic_bbox_reg=True, **changes) for of in weights],
        proposal_matchers=[matcher(overlap) for overlap in (0.5, 0.6, 0.7)],
        **common(classes),
    )


def main() -> None:
    """Run all cases and write the file."""
    same_samples()
    heads = {
        "cascade": (cascade_heads(), True),
        "cascade-plain": (cascade_heads(), False),
        "cascade-federated": (cascade_heads(**FEDERATED), True),
        "sigmoid": (standard_heads(**SIGMOID), False),
        "federated": (standard_heads(**FEDERATED), True),
    }
    golden: dict[str, Any] = {}
    for name, (of, rel_pos) in heads.items():
        model = detectron2_detector(rel_pos, of)
        golden[name] = {**run(model, tiny.LONG), "state": state_of(model.roi_heads)}
    golden["views"] = {
        name: views(detectron2_detector(True, of()))
        for name, of in (("mask", standard_heads), ("cascade", cascade_heads))
    }
    (HERE / "golden_heads.json").write_text(json.dumps(shortened(golden), separators=(",", ":")) + "\n")


def views(model: nn.Module) -> list[Any]:
    """What is detected in several sizes and mirrored."""
    tiny.fill(model)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.TEST.DETECTIONS_PER_IMAGE = True, 3, 20

    def look(item: dict[str, Any]) -> list[dict[str, Any]]:
        return [of for size in tiny.VIEWS for of in DatasetMapperTTA([size], size, True)(item)]

    several = GeneralizedRCNNWithTTA(cfg, model.double().eval(), look)
    items = [
        {"image": item["image"], "height": size[0], "width": size[1]}
        for item, size in zip(inputs(tiny.LONG), tiny.ORIGINALS, strict=True)
    ]
    with torch.no_grad():
        return [
            {
                "boxes": one.pred_boxes.tensor.tolist(),
                "scores": one.scores.tolist(),
                "labels": one.pred_classes.tolist(),
                "pixels": one.pred_masks.sum((1, 2)).tolist(),
            }
            for one in (found["instances"] for found in several(items))
        ]


def shortened(value: Any) -> Any:
    """Numbers to ten digits."""
    if isinstance(value, dict):
        return {key: shortened(of) for key, of in value.items()}
    if isinstance(value, list):
        return [shortened(of) for of in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
