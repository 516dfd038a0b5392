"""Encode predicted masks as COCO's run-length encoding, directly from the mask head's small grids.

`encode_masks` returns exactly the strings of pasting each mask into the image (`det.model.masks.paste`, detectron2's
method) and encoding it, without computing the images. Bilinear resizing is separable: one small matrix product computes
a mask's values along each pixel column at the rows of its cells, and between these rows they are linear. A run ends
where they cross the threshold, so single pixels are not evaluated. Pixels that rounding could put on the other side are
computed as in `paste`; a mask that is flat at the threshold is pasted.
"""

# R region of interest, M side of a mask, C column of pixels under a box, X crossing of the threshold

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_masks
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mimbench.det.model.masks import cells_at, paste

THRESHOLD = 0.5
CLOSE = 4e-6  # more than float32 rounding can move a value
NEAR = 3e-5  # of a mask's cell: more than rounding can move a pixel's position

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]


def encode_masks(masks_RMM: Tensor, boxes_R4: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return mask probabilities on their boxes as compressed RLE of an image of `size` (H, W), thresholded at 0.5.

    `counts` are str, for JSON.
    """
    if not len(boxes_R4):
        return []
    masks_RMM, boxes_R4 = masks_RMM.detach().float().cpu(), boxes_R4.detach().float().cpu()
    borders, doubtful = _borders(masks_RMM, boxes_R4, size)
    runs = [_lengths(positions, size[0] * size[1]) for positions in borders]
    encoded = coco_masks.frPyObjects([{"size": list(size), "counts": run} for run in runs], *size)
    for region in doubtful:
        pasted = paste(masks_RMM[region, None], boxes_R4[region, None], size)[0].numpy()
        encoded[region] = coco_masks.encode(np.asfortranarray(pasted.astype(np.uint8)))
    return [{"size": list(size), "counts": region["counts"].decode()} for region in encoded]


def _lengths(positions: Whole, pixels: int) -> list[int]:
    """Return the lengths of alternating runs of 0 and 1 between the positions where the image changes."""
    lengths: list[int] = np.diff(np.concatenate([[0], positions, [pixels]])).tolist()
    return lengths if lengths[-1] else lengths[:-1]


class _Columns(NamedTuple):
    """All pixel columns under boxes, region by region."""

    region: Whole  # (C,)
    place: Whole  # (C,) in the image
    ends: Whole  # (R + 1,) those of region r are ends[r] .. ends[r + 1]
    top: Whole  # (R,)
    bottom: Whole  # (R,)


def _columns(boxes_R4: Floats, size: tuple[int, int]) -> _Columns:
    height, width = size
    left_R, right_R = _reach(boxes_R4[:, 0], boxes_R4[:, 2], width)
    top_R, bottom_R = _reach(boxes_R4[:, 1], boxes_R4[:, 3], height)
    count_R = np.where(top_R < bottom_R, np.maximum(right_R - left_R, 0), 0)
    ends_R = np.concatenate([[0], np.cumsum(count_R)])
    region_C = np.repeat(np.arange(len(boxes_R4)), count_R)
    return _Columns(region_C, np.arange(ends_R[-1]) - (ends_R[:-1] - left_R)[region_C], ends_R, top_R, bottom_R)


def _reach(low_R: Floats, high_R: Floats, limit: int) -> tuple[Whole, Whole]:
    """Return the pixels that intervals touch, as in `paste`, without those that are certainly outside."""
    return np.floor(low_R).clip(0, limit).astype(np.int64), np.ceil(high_R).clip(0, limit).astype(np.int64)


def _weights(place_C: Whole, low_C: Floats, high_C: Floats, cells: int) -> Floats:
    """Return the weight of each cell of a mask at a pixel's centre, (C, M)."""
    centre_C = (place_C.astype(np.float32) + np.float32(0.5) - low_C) / (high_C - low_C)
    # -1 .. 1 and back, as in `paste` and grid_sample, for equal rounding
    position_C = (centre_C * 2 - 1 + 1) * np.float32(cells / 2) - np.float32(0.5)
    distance_CM = np.abs(position_C[:, None] - np.arange(cells, dtype=np.float32))
    weights: Floats = np.maximum(np.float32(1) - distance_CM, np.float32(0))
    return weights


def _along_columns(masks_RMM: Floats, boxes_R4: Floats, columns: _Columns) -> Floats:
    """Return each column's values at the rows of the mask's cells, with 0 one cell before and after: (C, M + 2)."""
    boxes_C4, cells = boxes_R4[columns.region], masks_RMM.shape[1]
    weights_CM = _weights(columns.place, boxes_C4[:, 0], boxes_C4[:, 2], cells)
    values = np.zeros((len(weights_CM), cells + 2), dtype=np.float32)
    for mask_MM, (first, last) in zip(masks_RMM, pairwise(columns.ends), strict=True):
        values[first:last, 1:-1] = weights_CM[first:last] @ mask_MM.T
    return values


def _borders(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[list[Whole], list[int]]:
    """Return the positions where each region's image changes, column by column, and the regions to be pasted."""
    columns = _columns(boxes.numpy(), size)
    values = _along_columns(masks.numpy(), boxes.numpy(), columns)
    inside = values >= THRESHOLD
    column_X, cell_X = np.nonzero(inside[:, 1:] != inside[:, :-1])
    region_X, place_X = columns.region[column_X], columns.place[column_X]
    row_X = _rows(masks, boxes, region_X, place_X, cell_X, values[column_X, cell_X], values[column_X, cell_X + 1])
    row_X = row_X.clip(columns.top[region_X], columns.bottom[region_X]).astype(np.int64)
    whole = size[0] * size[1] + 1  # keeps the positions of different regions apart
    key_X = region_X * whole + place_X * size[0] + row_X
    flat = columns.region[(np.abs(values - np.float32(THRESHOLD)) < CLOSE).any(1)]
    doubtful = np.union1d(flat, region_X[1:][key_X[1:] < key_X[:-1]]).tolist()
    keys, counts = np.unique(key_X, return_counts=True)
    keys = keys[counts % 2 == 1]  # crossing twice between two pixels changes nothing
    ends = np.searchsorted(keys, np.arange(len(boxes) + 1) * whole)
    return [keys[a:b] - region * whole for region, (a, b) in enumerate(pairwise(ends))], doubtful


def _rows(
    masks: Tensor, boxes: Tensor, region_X: Whole, place_X: Whole, cell_X: Whole, before_X: Floats, after_X: Floats
) -> NDArray[np.float64]:
    """Return the first image row below each crossing; the values are those of the cells before and after it."""
    top_X, bottom_X = boxes.numpy().astype(np.float64)[region_X][:, [1, 3]].T
    rise_X = after_X.astype(np.float64) - before_X
    pixels_X = (bottom_X - top_X) / masks.shape[1]  # in a cell
    exact_X = (cell_X - 0.5 + (THRESHOLD - before_X) / rise_X) * pixels_X + top_X - 0.5
    row_X, nearest_X = np.ceil(exact_X), np.rint(exact_X)
    away_X = np.abs(exact_X - nearest_X) / pixels_X
    unsure = np.flatnonzero((away_X < NEAR) | (away_X * np.abs(rise_X) < CLOSE))
    found = _pasted(masks, boxes, region_X[unsure], place_X[unsure], nearest_X[unsure])
    row_X[unsure] = nearest_X[unsure] + (found != (rise_X[unsure] > 0))
    rows: NDArray[np.float64] = row_X
    return rows


def _pasted(masks: Tensor, boxes: Tensor, region_X: Whole, place_X: Whole, row_X: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether `paste` would draw each pixel, given by region, column and row, sorted by region."""
    inside = np.zeros(len(region_X), dtype=np.bool_)
    for region, first in zip(*np.unique(region_X, return_index=True), strict=True):
        some = slice(first, first + int((region_X == region).sum()))
        box = boxes[region]
        x, y = (torch.from_numpy(values[some].astype(np.float32)) for values in (place_X, row_X))
        grid = torch.stack([cells_at(x, box[0], box[2]), cells_at(y, box[1], box[3])], dim=-1)[None, None]
        sampled = F.grid_sample(masks[region, None, None], grid, align_corners=False)
        inside[some] = (sampled[0, 0, 0] >= THRESHOLD).numpy()
    return inside
