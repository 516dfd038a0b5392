"""Predicted masks as COCO's run-length encoding, straight from the mask head's small grids.

`encode_masks` gives the very strings that pasting each mask into the image (`det.masks.paste`, detectron2's way) and
encoding that would give, without making the images: bilinear resizing is separable, so two small matrix products
give the part of the image under a box, and its runs are moved to where they lie in the image.
"""

# R region of interest, M side of a mask, h and w the part of an image under a box, H and W the image

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
import torch
from numpy.typing import NDArray
from torch import Tensor

from det.masks import paste

THRESHOLD = 0.5
CLOSE = 4e-6  # more than float32 rounding can move a pixel's value; nearer than this to the threshold, `paste` decides


def encode_masks(masks_RMM: Tensor, boxes_R4: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Mask probabilities on their boxes as compressed RLE of an image of `size` (H, W), cut at 0.5.

    `counts` are text, as JSON wants them.
    """
    if not len(boxes_R4):
        return []
    masks, boxes = masks_RMM.detach().float().cpu().numpy(), boxes_R4.detach().float().cpu().numpy()
    runs = [_runs(mask, box, size) for mask, box in zip(masks, boxes, strict=True)]
    encoded = coco_masks.frPyObjects([{"size": list(size), "counts": run.tolist()} for run in runs], *size)
    return [{"size": list(size), "counts": region["counts"].decode()} for region in encoded]


def _runs(mask_MM: NDArray[np.float32], box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.int64]:
    """Lengths of the runs of 0 and 1 in turn, down the columns of the image."""
    height, width = size
    left, right = _reach(box[0], box[2], width)
    top, bottom = _reach(box[1], box[3], height)
    if left >= right or top >= bottom:
        return np.array([height * width])
    rows_hM = _weights(top, bottom, box[1], box[3], len(mask_MM))
    columns_wM = _weights(left, right, box[0], box[2], len(mask_MM))
    values_wh = columns_wM @ mask_MM.T @ rows_hM.T
    inside_wh = values_wh >= THRESHOLD
    if np.abs(values_wh - THRESHOLD).min() < CLOSE:
        pasted = paste(torch.from_numpy(mask_MM)[None], torch.from_numpy(box)[None], size)[0]
        inside_wh = pasted[top:bottom, left:right].numpy().T
    return _lengths(inside_wh, top, left, size)


def _reach(low: np.float32, high: np.float32, limit: int) -> tuple[int, int]:
    """The pixels that an interval touches, as in `paste` but for those that are certainly outside."""
    return max(math.floor(low), 0), min(math.ceil(high), limit)


def _weights(first: int, last: int, low: np.float32, high: np.float32, cells: int) -> NDArray[np.float32]:
    """(pixels first..last-1, cells): how much each cell of a mask counts for a pixel centre."""
    centres = (np.arange(first, last, dtype=np.float32) + np.float32(0.5) - low) / (high - low)
    # -1 .. 1 and back, as `paste` and grid_sample have it, for the sake of equal rounding
    position = (centres * 2 - 1 + 1) * np.float32(cells / 2) - np.float32(0.5)
    distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    return np.maximum(np.float32(1) - distance, np.float32(0))


def _lengths(inside_wh: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """The runs of an image that is 0 but for `inside_wh` (columns first) at (top, left)."""
    columns, rows = inside_wh.shape
    guarded = np.zeros(columns * (rows + 1) + 1, dtype=np.bool_)  # a 0 above each column: no run crosses into the next
    guarded[:-1].reshape(columns, rows + 1)[:, 1:] = inside_wh
    column, row = np.divmod(np.flatnonzero(guarded[1:] != guarded[:-1]), rows + 1)
    position = (column + left) * size[0] + row + top
    joined = position[1:-1:2] == position[2::2]  # from the bottom of one column to the top of the next after all
    keep = np.ones(len(position), dtype=np.bool_)
    keep[1:-1:2] = keep[2::2] = ~joined
    borders = np.concatenate([[0], position[keep], [size[0] * size[1]]])
    lengths = borders[1:] - borders[:-1]
    return lengths if lengths[-1] else lengths[:-1]
