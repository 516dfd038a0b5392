"""The geometry of resizing, scale jitter and cropping, and its application to pixels and objects.

Training is detectron2's large-scale jitter: flip, resize so that the image fits a square of s times the side
(s uniform in .1 .. 2), crop to the side with *one* random fraction for both axes. Validation fits the image into the
square. Nothing is padded here: the model pads with zeros after normalisation.

Random numbers are drawn first (`draw_jitter`); the rest depends only on them. A `Placement` is the geometry, equal to
detectron2's (ResizeScale, FixedSizeCrop, ResizeShortestEdge) to the pixel; `render`, `place_polygons` and
`place_bitmap` apply it.

`render` resizes only the part of the image that is kept. The part begins and ends at source pixels within a twentieth
of a pixel of pixel borders of the resized image, so that the kept pixels equal those of resizing the whole image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.det.config import Augment
from mimbench.det.model.masks import Bitmap, Polygons
from mimbench.engine.data.images import resize

Size = tuple[int, int]  # height, width

OFF_BORDER = 0.05  # pixels of the resized image; half of it doubles the search and resizes more pixels


class Jitter(NamedTuple):
    """The random numbers of a training image's augmentation."""

    flip: bool
    scale: float  # 1 fits the whole image into the square
    fraction: float  # position of the crop: 0 top left, 1 bottom right


class Placement(NamedTuple):
    """Geometry: the source image is mirrored if `flip`, resized to `resized`, and cropped to the window at `offset`."""

    source: Size
    flip: bool
    resized: Size
    offset: tuple[int, int]  # top, left
    side: int  # of the window; a smaller image is not enlarged

    @property
    def size(self) -> Size:
        """Height and width of the kept part."""
        height, width = (min(length, self.side) for length in self.resized)
        return height, width


def draw_jitter(augment: Augment) -> Jitter:
    """Draw flip, scale and crop, in detectron2's order, from Python's `random`."""
    flip = random.random() < augment.flip
    return Jitter(flip, random.uniform(augment.smallest, augment.largest), random.random())


def jittered(source: Size, jitter: Jitter, side: int) -> Placement:
    """Return the placement of a training image of size `source` in a square of `side` pixels."""
    factor = min(side * jitter.scale / source[0], side * jitter.scale / source[1])
    # numpy rounds halves to even, and detectron2 rounds with numpy
    height, width = np.maximum(np.round(np.multiply(source, factor)), 1).astype(int).tolist()
    excess = np.maximum(np.subtract((height, width), side), 0)
    top, left = np.round(excess * jitter.fraction).astype(int).tolist()
    return Placement(source, jitter.flip, (height, width), (top, left), side)


def fitted(source: Size, side: int) -> Placement:
    """Return the placement of a validation image: its longer edge becomes `side`."""
    # Two steps like detectron2 (shorter edge to `side`, then longer edge down to it), for equal rounding.
    lengths = [side / min(source) * length for length in source]
    lengths[int(source[0] >= source[1])] = float(side)
    shrink = min(1.0, side / max(lengths))
    height, width = (max(int(length * shrink + 0.5), 1) for length in lengths)  # 1: a thin strip would have no pixels
    return Placement(source, False, (height, width), (0, 0), side)


# ----------------------------------------------------------------------------------------------------------- pixels


def render(image: Tensor, placement: Placement) -> Tensor:
    """Apply `placement` to a uint8 image (3, H, W): uint8 (3, h, w) of `placement.size`, bilinear with antialiasing."""
    (height, width), (top, left) = placement.size, placement.offset
    if placement.flip:  # the mirror image of a window is the window of the mirror image
        left = placement.resized[1] - width - left
    rows = _part(placement.source[0], placement.resized[0], top, height)
    columns = _part(placement.source[1], placement.resized[1], left, width)
    part = image[:, rows.begin : rows.end, columns.begin : columns.end]
    resized = resize(part, rows.length, columns.length, "bilinear")
    kept = resized[:, rows.skip : rows.skip + height, columns.skip : columns.skip + width]
    return kept.flip(-1) if placement.flip else kept


class _Part(NamedTuple):
    """Along one axis: source pixels begin..end are resized to `length` pixels, and the first `skip` are dropped."""

    begin: int
    end: int
    length: int
    skip: int


def _part(source: int, resized: int, offset: int, kept: int) -> _Part:
    """Return the smallest part of an axis of `source` pixels that contains `kept` resized pixels from `offset` on."""
    scale = resized / source
    reach = max(1.0, 1 / scale) + 1  # source pixels on each side that affect a resized pixel
    first, last = math.floor(offset / scale - reach), math.ceil((offset + kept) / scale + reach)
    begin = next(at for at in range(max(first, 0), -1, -1) if _on_border(at * scale))
    end = next(at for at in range(min(last, source), source + 1) if _on_border(at * scale))
    start = round(begin * scale)
    return _Part(begin, end, round(end * scale) - start, offset - start)


def _on_border(position: float) -> bool:
    return abs(position - round(position)) < OFF_BORDER


# ---------------------------------------------------------------------------------------------------------- objects


def place_polygons(instances: Sequence[Polygons], placement: Placement) -> list[Polygons]:
    """Apply `placement` to the polygons of each instance, clipped to the window; instances outside become empty.

    Clipping equals detectron2's (fvcore's CropTransform): polygons are made valid by a buffer of width 0, holes are
    dropped, and a polygon cut into several pieces becomes several polygons.
    """
    flat = [polygon for instance in instances for polygon in instance]
    if not flat:
        return [[] for _ in instances]
    owner = np.repeat(np.arange(len(instances)), [len(instance) for instance in instances])
    points = _moved(np.concatenate(flat).reshape(-1, 2), placement)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(flat)), [len(p) // 2 for p in flat]))
    pieces, piece_of = _cut(shapely.polygons(rings), placement)
    corners, corner_of = shapely.get_coordinates(shapely.get_exterior_ring(pieces), return_index=True)
    corners -= placement.offset[::-1]
    ends = np.cumsum(np.bincount(corner_of, minlength=len(pieces)))
    placed: list[Polygons] = [[] for _ in instances]
    for instance, ring in zip(owner[piece_of].tolist(), np.split(corners, ends)[:-1], strict=True):
        placed[instance].append(ring[:-1].reshape(-1))  # the last point repeats the first
    return placed


def _moved(points: NDArray[np.float64], placement: Placement) -> NDArray[np.float64]:
    """Map points (x, y) of the source image to the resized image, before cropping."""
    (height, width), (new_height, new_width) = placement.source, placement.resized
    x = width - points[:, 0] if placement.flip else points[:, 0]
    return np.stack([x * (new_width * 1.0 / width), points[:, 1] * (new_height * 1.0 / height)], axis=1)


def _cut(polygons: NDArray[np.object_], placement: Placement) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the pieces of the polygons inside the window, and the index of each piece's polygon."""
    top, left = placement.offset
    window = shapely.box(left, top, left + placement.side, top + placement.side)
    sound = shapely.buffer(polygons, 0.0)
    pieces, piece_of = shapely.get_parts(shapely.intersection(sound, window), return_index=True)
    usable = (shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(pieces)
    usable &= shapely.is_valid(pieces)
    return pieces[usable], piece_of[usable]


def place_boxes(boxes_N4: NDArray[np.float64], placement: Placement) -> Tensor:
    """Apply `placement` to boxes x0 y0 x1 y1, clipped to the window: float32 (N, 4).

    Only for data without masks: a box around the clipped mask is tighter.
    """
    moved = _moved(boxes_N4.reshape(-1, 2), placement) - np.array(placement.offset[::-1])
    corners = np.clip(moved.reshape(-1, 2, 2), 0, np.array(placement.size[::-1]))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return torch.from_numpy(boxes.astype(np.float32))


def place_bitmap(bitmap: Bitmap, placement: Placement) -> Bitmap:
    """Apply `placement` to a mask (H, W): (h, w) of `placement.size`, by nearest source pixel."""
    (height, width), (top, left) = placement.size, placement.offset
    rows = _nearest(placement.source[0], placement.resized[0], top, height)
    columns = _nearest(placement.source[1], placement.resized[1], left, width)
    if placement.flip:
        columns = placement.source[1] - 1 - columns
    return np.ascontiguousarray(bitmap[rows[:, None], columns], dtype=np.uint8)


def _nearest(source: int, resized: int, offset: int, kept: int) -> NDArray[np.int64]:
    steps = np.full(resized, source / resized)
    steps[0] /= 2
    # Summed like Pillow, not multiplied: if a centre falls on a border, rounding decides.
    return np.minimum(np.cumsum(steps)[offset : offset + kept].astype(np.int64), source - 1)


def boxes_around(shapes: Sequence[Polygons | Bitmap]) -> Tensor:
    """Return the tight box x0 y0 x1 y1 of each shape: float32 (N, 4); zeros for an empty shape."""
    boxes = np.zeros((len(shapes), 4), dtype=np.float32)
    for box, shape in zip(boxes, shapes, strict=True):
        if not isinstance(shape, list):
            rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
            if len(rows):
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        elif shape:
            points = np.concatenate(shape).reshape(-1, 2)
            box[:2], box[2:] = points.min(axis=0), points.max(axis=0)
    return torch.from_numpy(boxes)
