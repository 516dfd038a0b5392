"""Boxes (x0, y0, x1, y1) in pixels: the R-CNN box code, clipping, and the test for empty boxes.

The code of a target relative to a source box is (dx, dy, dw, dh): the shift of the centre in units of the source's
sides, and the logarithm of the ratio of sides, each multiplied by a weight. The arithmetic is that of detectron2's
`Box2BoxTransform`. Overlaps and suppression are torchvision's `box_iou` and `batched_nms`.
"""

# N boxes, K classes

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mimbench.det.model.host import constant, uploaded

Weights = tuple[float, float, float, float]

LARGEST_GROWTH = math.log(1000 / 16)  # a 16-pixel box may become one of 1000 pixels in one step


def encode(source_N4: Tensor, target_N4: Tensor, weights: Weights) -> Tensor:
    """Return the code (N, 4) that maps each source box to its target."""
    source_centre, source_side = _centre_and_side(source_N4)
    target_centre, target_side = _centre_and_side(target_N4)
    weight = constant(weights, source_N4)
    shift = weight[:2] * (target_centre - source_centre) / source_side
    growth = weight[2:] * torch.log(target_side / source_side)
    return torch.cat([shift, growth], dim=-1)


def decode(code_NK4: Tensor, source_N4: Tensor, weights: Weights) -> Tensor:
    """Apply codes (..., 4) to source boxes of a broadcastable shape; returns float32 for every input type."""
    code, source = code_NK4.float(), source_N4.float()
    centre, side = _centre_and_side(source)
    weight = constant(weights, code)
    moved = code[..., :2] / weight[:2] * side + centre
    grown = torch.exp((code[..., 2:] / weight[2:]).clamp(max=LARGEST_GROWTH)) * side
    return torch.cat([moved - 0.5 * grown, moved + 0.5 * grown], dim=-1)


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * side, side


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32, which losses and coordinates need under autocast."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def image_corners(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return the largest x, y, x, y inside each image of size (h, w), (B, 1, 4), for clipping boxes (B, N, 4)."""
    return uploaded([(w, h, w, h) for h, w in sizes], like)[:, None]


def nonempty(boxes: Tensor) -> Tensor:
    """Return which boxes (..., 4) have a positive area."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
