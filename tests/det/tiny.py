"""A small detector, its weights, images and objects, all from formulas, for both sides of a comparison.

golden_model.py and golden_heads.py give them to detectron2, the tests to ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimbench.backbones.config import ViT
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.model.mask_rcnn import MaskRCNN, build_mask_rcnn
from mimbench.det.model.masks import InstanceMasks

Shapes = Sequence[tuple[int, int]]  # (h, w) of each image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 128
SHAPES = [(128, 128), (100, 120), (88, 128)]  # (h, w) of the images; the last holds no object
LONG = [(128, 72), (56, 128), (97, 113)]  # the same for images that are longer one way
VIEWS = (64, 100, 128)  # longest sides in which an image is looked at
ORIGINALS = [(200, 113), (56, 128), (60, 70)]  # what LONG was resized from
SEEN_IN = [9, 4, 1, 16, 0, 3, 7, 2]  # images that show each class, for the federated loss
GAINS = {  # so that scores, boxes and masks are spread out
    "objectness_logits.weight": 2.0,
    "anchor_deltas.weight": 0.3,
    "cls_score.weight": 3.0,
    "mask_head.predictor.weight": 4.0,
}


def tiny_detector(
    rel_pos: bool, classes: int = 3, class_weights: Tensor | None = None, loss_weights: Any = "batch", **heads: Any
) -> MaskRCNN:
    """Small, but with windows that stick out, resized positions and all five pyramid levels.

    Losses are means over all regions of the batch, as detectron2's are on one GPU.
    """
    options: dict[str, Any] = {"samples": 32, "convs": 2, "channels": 16, "fc": 24, "detections": 20, **heads}
    config = MaskRCNNConfig(
        data="",
        encoder=ViT(32, 4, 4, patch=8, image=64),
        image=SIDE,
        vitdet=ViTDetConfig(window=3, global_blocks=(3,), rel_pos=rel_pos, drop_path=0.0, channels=16),
        proposals=Proposals(
            anchor_sizes=(16, 32, 64, 128, 256), samples=64, before_nms=(200, 100), after_nms=(100, 50)
        ),
        heads=Heads(**options),
        loss_weights=loss_weights,
    )
    return build_mask_rcnn(config, config.encoder, classes=classes, mean=MEAN, std=STD, class_weights=class_weights)


def fill(model: nn.Module) -> None:
    """Weights that look random and come from a formula: a hash of each element's index and its tensor's rank."""
    state = model.state_dict()
    for rank, key in enumerate(sorted(state)):
        if key.endswith("fed_loss_cls_weights"):
            continue
        index = torch.arange(state[key].numel(), dtype=torch.float64)
        value = torch.sin(12.9898 * index + 78.233 * rank) * 43758.5453
        value = (value - value.floor() - 0.5) * 12**0.5
        if state[key].ndim == 1:
            value = 0.1 * value + key.endswith(".weight")
        elif "rel_pos" in key or "pos_embed" in key:
            value = 0.3 * value
        else:
            value = value / state[key][0].numel() ** 0.5
        gain = next((gain for name, gain in GAINS.items() if key.endswith(name)), 1.0)
        state[key].copy_((gain * value).view_as(state[key]))


def images(shapes: Shapes = SHAPES) -> list[Tensor]:
    """One uint8 image (3, h, w) of each shape."""
    return [
        (127 + 100 * torch.sin(0.011 * torch.arange(3 * h * w, dtype=torch.float64))).byte().view(3, h, w)
        for h, w in shapes
    ]


def star(x: float, y: float, width: float, height: float) -> np.ndarray:
    """A ten-pointed polygon around (x, y), flat."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    reach = np.where(np.arange(20) % 2, 0.25, 0.5)
    return np.stack([x + width * reach * np.cos(angle), y + height * reach * np.sin(angle)], 1).ravel()


def polygons(shapes: Shapes = SHAPES) -> list[list[np.ndarray]]:
    """The objects of the first image: the third is in two pieces."""
    pieces = [star(82, 90, 20, 22), star(112, 92, 18, 30)]
    drawn = [[star(30, 40, 40, 60)], [star(90.5, 30.2, 50, 31.3)], pieces, [star(33, 44, 30, 30)]]
    factor = np.tile(_factor(shapes, 0), 20)
    return [[piece * factor for piece in of] for of in drawn]


def bitmaps(shapes: Shapes = SHAPES) -> np.ndarray:
    """The objects of the second image, (2, h, w)."""
    y, x = np.mgrid[: shapes[1][0], : shapes[1][1]] / _factor(shapes, 1)[::-1, None, None]
    return np.stack([(x - 40) ** 2 + (y - 50) ** 2 < 30**2, (abs(x - 90) < 20) & (abs(y - 30) < 12) & (x + y > 110)])


def boxes(shapes: Shapes = SHAPES) -> list[Tensor]:
    """Objects' boxes of each image."""
    around = [np.concatenate(pieces).reshape(-1, 2) for pieces in polygons(shapes)]
    drawn = torch.tensor([[*points.min(0), *points.max(0)] for points in around]).float()
    mapped = torch.tensor([[11.0, 21, 70, 80], [71, 19, 110, 42]]) * torch.from_numpy(np.tile(_factor(shapes, 1), 2))
    return [drawn, mapped.float(), torch.zeros(0, 4)]


def _factor(shapes: Shapes, image: int) -> np.ndarray:
    """(x, y): how much longer an image is than the one of SHAPES."""
    return np.array([shapes[image][1] / SHAPES[image][1], shapes[image][0] / SHAPES[image][0]])


def labels() -> list[Tensor]:
    """Objects' labels of each image."""
    return [torch.tensor([0, 2, 1, 0]), torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]


def batch(shapes: Shapes = SHAPES) -> dict[str, Any]:
    """The images in the form the detector takes, padding not zero."""
    padded = torch.full((len(shapes), 3, SIDE, SIDE), 77, dtype=torch.uint8)
    for place, image in zip(padded, images(shapes), strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    masks = [InstanceMasks(polygons(shapes)), InstanceMasks(list(bitmaps(shapes))), InstanceMasks([])]
    objects = zip(boxes(shapes), labels(), masks, strict=True)
    targets = [{"boxes": box, "labels": label, "masks": mask} for box, label, mask in objects]
    return {"images": padded, "sizes": list(shapes), "targets": targets}


def fixed_permutation(count: int, device: object = None) -> Tensor:
    """In place of torch.randperm."""
    return (0.6180339887498949 * torch.arange(1, count + 1, dtype=torch.float64)).frac().argsort()
