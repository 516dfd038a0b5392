"""Writes golden_model.json: what detectron2 makes of the weights, images and objects of tiny.py.

    PYTHONPATH=detectron2's checkout python tests/det/golden_model.py

It needs detectron2 (02b5c4e2), whose Python part is enough, and runs it as it is in float64, but for suppression,
which is given float32 scores (torchvision refuses a mixture).
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead, proposal_utils
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    fast_rcnn,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import batched_nms

HERE = Path(__file__).parent
STRIDES = (2, 4, 8, 16, 32)
CASES = {"relative": True, "plain": False}
MAPS = [f"p{int(math.log2(stride))}" for stride in STRIDES]


def detectron2_detector(rel_pos: bool, heads: StandardROIHeads) -> nn.Module:
    """detectron2's twin of `tiny.tiny_detector`, with these heads."""
    net = ViT(
        img_size=tiny.SIDE,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=4,
        window_size=3,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_block_indexes=[0, 1, 2],
        use_rel_pos=rel_pos,
        pretrain_img_size=64,
    )
    top = LastLevelMaxPool()
    top.in_feature = MAPS[3]
    backbone = SimpleFeaturePyramid(
        net, "last_feat", 16, (4.0, 2.0, 1.0, 0.5), top_block=top, norm="LN", square_pad=tiny.SIDE
    )
    rpn = RPN(
        in_features=MAPS,
        head=StandardRPNHead(in_channels=16, num_anchors=3, conv_dims=[-1, -1]),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[16], [32], [64], [128], [256]], aspect_ratios=[0.5, 1.0, 2.0], strides=STRIDES, offset=0.0
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=64,
        positive_fraction=0.5,
        pre_nms_topk=(200, 100),
        post_nms_topk=(100, 50),
        nms_thresh=0.7,
    )
    mean, std = ([255 * value for value in values] for values in (tiny.MEAN, tiny.STD))
    return GeneralizedRCNN(backbone=backbone, proposal_generator=rpn, roi_heads=heads, pixel_mean=mean, pixel_std=std)


def pooler(side: int) -> ROIPooler:
    """Of regions of `side` cells."""
    return ROIPooler(side, [1 / stride for stride in STRIDES[:4]], sampling_ratio=0, pooler_type="ROIAlignV2")


def box_head() -> FastRCNNConvFCHead:
    """Two convolutions and a linear layer."""
    return FastRCNNConvFCHead(
        ShapeSpec(channels=16, height=7, width=7), conv_dims=[16, 16], fc_dims=[24], conv_norm="LN"
    )


def box_predictor(
    weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0), classes: int = 3, **changes: Any
) -> FastRCNNOutputLayers:
    """The classes and the boxes of regions."""
    return FastRCNNOutputLayers(
        ShapeSpec(channels=24),
        box2box_transform=Box2BoxTransform(weights=weights),
        num_classes=classes,
        test_score_thresh=0.05,
        test_topk_per_image=20,
        **changes,
    )


def common(classes: int) -> dict[str, Any]:
    """What all heads have."""
    return {
        "num_classes": classes,
        "batch_size_per_image": 32,
        "positive_fraction": 0.25,
        "box_in_features": MAPS[:4],
        "box_pooler": pooler(7),
        "mask_in_features": MAPS[:4],
        "mask_pooler": pooler(14),
        "mask_head": MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=16, width=14, height=14), num_classes=classes, conv_dims=[16, 16, 16], conv_norm="LN"
        ),
    }


def matcher(overlap: float) -> Matcher:
    """Of regions and objects."""
    return Matcher([overlap], [0, 1], allow_low_quality_matches=False)


def standard_heads(classes: int = 3, **changes: Any) -> StandardROIHeads:
    """Mask R-CNN's; `changes` of the predictor."""
    predictor = box_predictor(classes=classes, **changes)
    return StandardROIHeads(
        proposal_matcher=matcher(0.5), box_head=box_head(), box_predictor=predictor, **common(classes)
    )


def inputs(shapes: tiny.Shapes) -> list[dict[str, Any]]:
    """tiny.batch() in detectron2's form."""
    masks = [PolygonMasks(tiny.polygons(shapes)), BitMasks(torch.from_numpy(tiny.bitmaps(shapes))), PolygonMasks([])]
    items = []
    each = zip(tiny.images(shapes), tiny.boxes(shapes), tiny.labels(), masks, strict=True)
    for image, boxes, labels, mask in each:
        height, width = image.shape[1:]
        objects = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=labels, gt_masks=mask)
        items.append({"image": image, "height": height, "width": width, "instances": objects})
    return items


def run(model: nn.Module, shapes: tiny.Shapes = tiny.SHAPES) -> dict[str, Any]:
    """Everything that tests compare, for one detector."""
    tiny.fill(model)
    model.double().eval()
    with torch.no_grad():
        padded = model.preprocess_image(inputs(shapes))
        maps = model.backbone(padded.tensor)
        proposals, _ = model.proposal_generator(padded, maps, None)
        found = model.inference(inputs(shapes), do_postprocess=False)
        masks = [one.pred_masks.sum((1, 2, 3)).tolist() for one in found]
        shown = [one["instances"] for one in model(inputs(shapes))]
    torch.manual_seed(0)  # the federated loss draws classes
    with EventStorage():
        losses = model.train()(inputs(shapes))
    sum(losses.values()).backward()
    return {
        "maps": [[one.sum().item(), one.abs().sum().item(), one.flatten()[:3].tolist()] for one in maps.values()],
        "proposals": [_summary(one.proposal_boxes.tensor) for one in proposals],
        "losses": {key: value.item() for key, value in losses.items()},
        "gradients": {
            name: weight.grad.norm().item() for name, weight in model.named_parameters() if weight.grad is not None
        },
        "detections": [
            {
                "boxes": one.pred_boxes.tensor.tolist(),
                "scores": one.scores.tolist(),
                "labels": one.pred_classes.tolist(),
                "masks": sums,
                "pixels": one.pred_masks.sum((1, 2)).tolist(),
            }
            for one, sums in zip(shown, masks, strict=True)
        ],
    }


def _summary(boxes: torch.Tensor) -> list[Any]:
    return [len(boxes), boxes.double().sum().item(), boxes[:3].tolist()]


def state_of(model: nn.Module) -> list[Any]:
    """Names and shapes of all weights."""
    return [[key, list(value.shape)] for key, value in sorted(model.state_dict().items())]


def same_samples() -> None:
    """Make detectron2 draw what the tests draw, and give suppression what torchvision takes."""
    torch.randperm = tiny.fixed_permutation
    for module in (proposal_utils, fast_rcnn):
        module.batched_nms = lambda boxes, scores, ids, overlap: batched_nms(boxes, scores.float(), ids, overlap)


def main() -> None:
    """Run all cases and write the file."""
    same_samples()
    golden: dict[str, Any] = {
        name: run(detectron2_detector(rel_pos, standard_heads())) for name, rel_pos in CASES.items()
    }
    golden["state"] = state_of(detectron2_detector(True, standard_heads()))
    (HERE / "golden_model.json").write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    sys.exit(main())
