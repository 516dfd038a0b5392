"""The COCO view of `handwritten`: digits on photographs, with boxes and outlines, and with label maps.

Layout and format are COCO 2017's: boxes [x, y, width, height] in pixels, polygons [x1, y1, x2, y2, ...], run lengths
for masks with holes, ten categories with ids 1 to 10 named "0" to "9".

An image holds up to five digits, placed so that strokes do not touch; every 32nd image is empty; every 20th also has a
crowd, a heap of small copies of one digit under one annotation with iscrowd=1. An object is a polygon on the outline of
its strokes, to a fraction of a pixel; an object with a large hole (0, 6, 8, 9) is a run-length mask instead. `area`
counts the pixels of that mask.

A label map holds for each pixel: 0 for background, d + 1 for the ink of digit d, 255 (ignored) inside a crowd.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.engine.data.handwritten_material import DIGITS, Backgrounds, Content, Material, Sizes, encode, ink
from mimbench.engine.data.splits import SPLITS, Split

Mask = NDArray[np.bool_]  # (H, W)
Alpha = NDArray[np.uint8]  # (H, W), amount of ink: 0..255

INSIDE = 128  # a pixel with at least this much ink belongs to the digit
HOLE = 0.04  # an object with a larger hole, as a share of the outline's area, becomes a run-length mask
SMALLEST, LARGEST = 0.4, 0.85  # share of the image's side: as large as in the pretraining images
IGNORED = 255  # in a label map
TRIES = 20  # positions tried for a digit before it is omitted


def coco_view(material: Material, sizes: Sizes, seed: int) -> Iterator[Content]:
    """Yield the images of both splits and, after each split's images, its annotation file."""
    backgrounds = Backgrounds(material.photographs, sizes.coco_side)
    for split in SPLITS:
        images, annotations = [], []
        for index in range(sizes.coco(split)):
            rng = Random(f"{seed} coco {split} {index}")
            scene = Scene(backgrounds.draw(rng), rng, material.scans[split])
            scene.fill(empty=index % 32 == 7, crowd=index % 20 == 3)
            name = f"{index + 1:012d}.jpg"
            images.append({"id": index + 1, "file_name": name, "width": sizes.coco_side, "height": sizes.coco_side})
            annotations += [{"image_id": index + 1, **annotation} for annotation in scene.annotations]
            yield f"coco/{split}2017/{name}", encode(scene.image, "JPEG", quality=95, subsampling=0)
            yield f"coco/labels/{split}2017/{index + 1:012d}.png", encode(Image.fromarray(scene.labels), "PNG")
        yield f"coco/annotations/instances_{split}2017.json", _annotation_file(split, images, annotations)
    yield "coco/labels/classes.txt", "".join(f"{name}\n" for name in ("background", *range(DIGITS))).encode()


def _annotation_file(split: Split, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> bytes:
    whole = {
        "info": {"description": f"handwritten, {split}", "version": "1"},
        "licenses": [],
        "categories": [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(DIGITS)],
        "images": images,
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
    }
    return json.dumps(whole, separators=(",", ":")).encode()


@dataclass
class Scene:
    """An image to which digits are added."""

    image: Image.Image
    rng: Random
    scans: list[list[Image.Image]]
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.taken: Mask = np.zeros((self.image.height, self.image.width), dtype=bool)
        self.labels: Alpha = np.zeros(self.taken.shape, dtype=np.uint8)

    def fill(self, empty: bool, crowd: bool) -> None:
        """Draw and annotate the digits of this image."""
        if empty:
            return
        if crowd:
            self._crowd(self.rng.randrange(DIGITS))
        for _ in range(self.rng.randrange(0, 3) if crowd else self.rng.randrange(1, 6)):
            digit = self.rng.randrange(DIGITS)
            size = round(self.image.width * self.rng.uniform(SMALLEST, LARGEST))
            alpha = self._scan(digit, size)
            if (place := self._free_place(alpha >= INSIDE)) is not None:
                drawn = self._draw(alpha, *place)
                self.labels[drawn] = digit + 1
                self.annotations.append(_instance(digit, alpha, *place, self.taken.shape))

    def _scan(self, digit: int, size: int) -> Alpha:
        """Return a random scan of `digit`, resized."""
        return np.asarray(self.rng.choice(self.scans[digit]).resize((size, size), Image.Resampling.BICUBIC))

    def _free_place(self, mask: Mask) -> tuple[int, int] | None:
        """Return left and top of a position where `mask` touches no other digit; None if none was found."""
        size = mask.shape[0]
        for _ in range(TRIES):
            left, top = self._corner(size)
            if not (self.taken[top : top + size, left : left + size] & mask).any():
                return left, top
        return None

    def _corner(self, size: int) -> tuple[int, int]:
        """Return left and top of a random square of `size` pixels."""
        return self.rng.randrange(self.image.width - size + 1), self.rng.randrange(self.image.width - size + 1)

    def _draw(self, alpha: Alpha, left: int, top: int) -> Mask:
        """Draw a digit and return the pixels it covers."""
        self.image.paste(ink(self.rng), (left, top), Image.fromarray(alpha))
        drawn = _on_canvas(alpha, left, top, self.taken.shape) >= INSIDE
        self.taken |= drawn
        return drawn

    def _crowd(self, digit: int) -> None:
        """Draw and annotate a heap of small digits; its region is the union of their boxes."""
        side = self.image.width
        size = side // 10
        corner = self._corner(4 * size)
        region = np.zeros_like(self.taken)
        for row in range(3):
            for column in range(3):
                left = corner[0] + column * size + self.rng.randrange(size // 2)
                top = corner[1] + row * size + self.rng.randrange(size // 2)
                self._draw(self._scan(digit, size), left, top)
                region[top : top + size, left : left + size] = True
        self.taken |= region
        self.labels[region] = IGNORED
        self.annotations.append(_annotation(digit, run_lengths(region), region, crowd=True))


def _on_canvas(alpha: Alpha, left: int, top: int, shape: tuple[int, ...]) -> Alpha:
    canvas = np.zeros(shape, dtype=np.uint8)
    canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
    return canvas


def _instance(digit: int, alpha: Alpha, left: int, top: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the annotation of a digit drawn at (left, top)."""
    polygons, hole = outlines(alpha)
    if hole > HOLE:
        mask = _on_canvas(alpha, left, top, shape) >= INSIDE
        return _annotation(digit, run_lengths(mask), mask)
    placed = [np.round(polygon + np.array([left, top]), 2).reshape(-1).tolist() for polygon in polygons]
    return _annotation(digit, placed, rasterise(placed, shape))


def _annotation(digit: int, segmentation: Any, mask: Mask, crowd: bool = False) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = float(columns[0]), float(rows[0])
    box = [left, top, float(columns[-1] + 1) - left, float(rows[-1] + 1) - top]
    if isinstance(segmentation, list):  # as in COCO, the box of a polygon is to the fraction of a pixel
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
        low, high = points.min(axis=0), points.max(axis=0)
        box = [round(float(value), 2) for value in (*low, *(high - low))]
    return {
        "category_id": digit + 1,
        "iscrowd": int(crowd),
        "bbox": box,
        "area": int(mask.sum()),
        "segmentation": segmentation,
    }


def outlines(alpha: Alpha) -> tuple[list[NDArray[np.float64]], float]:
    """Return polygons (points, 2) around the ink, x and y in pixels from the corner, and the holes' share of the area.

    Specks smaller than four pixels are left out.
    """
    from contourpy import FillType, contour_generator

    samples = np.pad(alpha.astype(np.float64), 1)  # a border, so that every outline closes
    found = contour_generator(z=samples, fill_type=FillType.OuterOffset).filled(INSIDE - 0.5, np.inf)
    polygons, area, holes = [], 0.0, 0.0
    for points, offsets in zip(*found, strict=True):
        # The first sample is the border's, at -0.5. Every third point keeps the outline within 0.2 pixels.
        outer, *inner = [points[start : end - 1 : 3] - 0.5 for start, end in pairwise(offsets)]
        if len(outer) > 2 and _area(outer) >= 4:
            polygons.append(outer)
            area += _area(outer)
            holes += sum(_area(ring) for ring in inner)
    return polygons, holes / max(area, 1.0)


def _area(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def rasterise(polygons: list[list[float]], shape: tuple[int, ...]) -> Mask:
    """Return the pixels inside polygons, rasterised by pycocotools: (H, W)."""
    from pycocotools import mask as coco_mask

    whole: Mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)
    return whole


def run_lengths(mask: Mask) -> dict[str, list[int]]:
    """Return COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = [0, *changes.tolist(), flat.size]
    counts = [end - start for start, end in pairwise(edges)]
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}
