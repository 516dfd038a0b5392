"""Pictures of what a detector finds: images with their detections, validation images beside the ground truth.

    draw_detections(split, results, path, 6)          # six of them, evenly chosen
    draw_detections(split, results, path, 6, worst)   # those first in `worst` (`det.evaluation.errors`)
    draw_objects(image, objects, path)                # one image by itself, at its own size

Each object has its mask, its box, the name of its category and, if detected, its score. Categories keep their colour
from image to image. Detections that score at least half as much as the best of all are drawn, `MOST` of them at most: a
detector in its first steps is sure of nothing. Images are shrunk to what is seen of them before anything is drawn, and
masks are decoded one at a time: those of a photograph of 36 Mpx would take gigabytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask as coco_masks
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from mimbench.det.data.coco import CocoSplit, Region
from mimbench.det.evaluation.errors import ImageJudged
from mimbench.det.evaluation.evaluate import Result
from mimbench.engine.run.atomic import write_with

MOST = 20
PAIRS = 2  # of ground truth and detections in one row
INCHES = 3.0  # width of one image
LONGEST = 700  # pixels of a side of one image: twice what is seen
LONGEST_ALONE = 2000  # the same of an image by itself
PROGRAM = "mimbench predict"  # in the pictures of `draw_objects`: what may be replaced
TINT = 0.5  # how much of a mask's colour covers the image


class Drawn(NamedTuple):
    """An object to be drawn."""

    mask: Region | None  # COCO's compressed run lengths, at the image's own size
    box: tuple[float, float, float, float]  # x y w h
    label: int
    text: str


def draw_detections(
    split: CocoSplit, results: Sequence[Result], path: Path, count: int, order: Sequence[int] | None = None
) -> None:
    """Write a PNG of `count` images of `split` and their `results`: the first of `order`, places in `split`.

    Without `order` they are evenly chosen from those with objects. Nothing is written if there are none.
    """
    chosen = _evenly(split.with_objects(), count) if order is None else list(order[:count])
    if not chosen:
        return
    found = defaultdict(list)
    for result in results:
        found[result["image_id"]].append(result)
    least = least_drawn(results)
    rows = [chosen[start : start + PAIRS] for start in range(0, len(chosen), PAIRS)]
    heights = [max(split.size(index)[0] / split.size(index)[1] for index in row) for row in rows]
    figure = Figure(figsize=(2 * PAIRS * INCHES, sum(heights) * INCHES + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2 * PAIRS, squeeze=False, height_ratios=heights)
    for panel in axes.flat:
        panel.set_axis_off()
    for place, index in enumerate(chosen):
        left, right = axes[place // PAIRS, 2 * (place % PAIRS) : 2 * (place % PAIRS) + 2]
        image, step = _shrunk(split.read_image(index).permute(1, 2, 0).numpy(), LONGEST)
        _panel(left, image, step, _truth(split, index), f"image {split.image_ids[index]}: ground truth")
        detected = _detected(split, found[int(split.image_ids[index])], least)
        _panel(right, image, step, detected, f"detections scoring {least:.2f} or more")
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def least_drawn(results: Sequence[Result]) -> float:
    """The score from which on detections are drawn: half of the best."""
    return 0.5 * max((result["score"] for result in results), default=1.0)


def worst_first(images: Sequence[ImageJudged], least: float) -> list[int]:
    """Places in the split, images with the smallest share of right detections first; those without a mistake left out.

    Where they are equal, the one with more mistakes comes first.
    """

    def mistakes(image: ImageJudged) -> int:
        wrong = sum(one.score >= least and one.verdict not in ("right", "ignored") for one in image.detections)
        return wrong + len(image.unmatched)

    poor = [image for image in images if image.quality(least) < 1]
    return [image.index for image in sorted(poor, key=lambda image: (image.quality(least), -mistakes(image)))]


def draw_objects(image: NDArray[np.uint8], objects: Iterable[Drawn], path: Path) -> None:
    """Write a PNG of one image (H, W, 3) with what is in it, of the image's own size (at most 2,000 pixels wide)."""
    height, width = image.shape[:2]
    inches = min(width, LONGEST_ALONE) / 100
    figure = Figure(figsize=(inches, inches * height / width), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _panel(axes, *_shrunk(image, LONGEST_ALONE), objects, "", size=max(6.0, 9 * inches / 6.4))
    about = {"Software": PROGRAM}
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100, metadata=about))


def _evenly(images: NDArray[np.int64], count: int) -> list[int]:
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    chosen: list[int] = images[places].tolist()
    return chosen


def _shrunk(image: NDArray[np.uint8], longest: int) -> tuple[NDArray[np.uint8], int]:
    """An image (H, W, 3) whose sides are at most `longest`, and how many pixels became one along each side."""
    step = math.ceil(max(image.shape[:2]) / longest)
    return (np.asarray(Image.fromarray(np.ascontiguousarray(image)).reduce(step)), step) if step > 1 else (image, 1)


def _truth(split: CocoSplit, index: int) -> list[Drawn]:
    labels, corners = split.boxed_objects(index)
    drawn = []
    for label, region, (x0, y0, x1, y1) in zip(labels.tolist(), split.regions(index), corners.tolist(), strict=True):
        box = (x0, y0, x1 - x0, y1 - y0) if region is None else tuple(coco_masks.toBbox(region).tolist())
        drawn.append(Drawn(region, box, label, split.categories[label]))
    return drawn


def _detected(split: CocoSplit, results: Sequence[Result], least: float) -> list[Drawn]:
    return detected(results, split.category_ids, split.categories, least)


def detected(
    results: Sequence[Result], category_ids: Sequence[int], categories: Sequence[str], least: float
) -> list[Drawn]:
    """What is to be drawn of the results of one image: those that score `least` or more, the best `MOST` of them."""
    best = sorted((r for r in results if r["score"] >= least), key=lambda result: -result["score"])[:MOST]
    labels = [category_ids.index(result["category_id"]) for result in best]
    return [
        Drawn(
            result.get("segmentation"),
            tuple(result["bbox"]),
            label,
            f"{categories[label]} {result['score']:.2f}",
        )
        for result, label in zip(best, labels, strict=True)
    ]


def _panel(
    axes: Axes, image: NDArray[np.uint8], step: int, objects: Iterable[Drawn], title: str, size: float = 6.0
) -> None:
    """One image with what is in it, the largest objects first so that small ones are not covered.

    `step`: how many pixels of the original one of `image` stands for, along each side.
    """
    tinted = image.astype(np.float32) / 255
    for drawn in sorted(objects, key=lambda drawn: -drawn.box[2] * drawn.box[3]):
        colour = _colour(drawn.label)
        if drawn.mask is not None:
            mask = coco_masks.decode(drawn.mask)[::step, ::step].astype(np.bool_)
            tinted[mask] = (1 - TINT) * tinted[mask] + TINT * np.array(colour)
        x, y, width, height = (value / step for value in drawn.box)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.5))
        above = y > 0.06 * image.shape[0]  # room for the name
        axes.text(
            max(x, 0), max(y, 0), drawn.text, fontsize=size, color="white", clip_on=True, parse_math=False,
            verticalalignment="bottom" if above else "top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
        )  # fmt: skip
    axes.imshow(tinted)
    axes.set_title(title, fontsize=8)


def _colour(label: int) -> tuple[float, float, float]:
    red, green, blue, _ = colormaps["tab20"](label * 7 % 20)  # 7 steps at a time: neighbours differ in hue
    return red * 0.85, green * 0.85, blue * 0.85
