"""Plots of a detector's output: images with their detections, validation images beside the ground truth.

    draw_detections(split, results, path, 6)          # six evenly spaced images
    draw_detections(split, results, path, 6, worst)   # the first six of `worst` (`det.evaluation.errors`)
    draw_objects(image, objects, path)                # a single image in full size

Each object is drawn with its mask, box, category name and, for detections, its score. A category has the same colour in
all images; if all objects of an image are of one category, each object has its own. At most `MOST` detections with at
least half the highest score of all images are drawn, because an untrained detector has only low scores. Images are
resized to the displayed size first, and masks are decoded one by one: those of 36 Mpx photographs would need gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask as coco_masks
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from PIL import Image

from mimbench.det.data.coco import CocoSplit, Region
from mimbench.det.evaluation.errors import ImageJudged
from mimbench.det.evaluation.results import Result, Results
from mimbench.engine.run.figure import printable, row_heights, write_figure
from mimbench.engine.run.task import DRAWN_BY

MOST = 20
PAIRS = 2  # pairs of ground truth and detections per row
INCHES = 3.0  # width of one image
LONGEST = 700  # pixels of the longest side of an image: twice the displayed size
LONGEST_ALONE = 2000  # the same for a single image
TINT = 0.5  # opacity of a mask's colour
TITLE, NAME = 12.0, 8.0  # font sizes, legible when the picture is shown at two thirds of its size
COLOURS = (  # bright, with black names on them (contrast of 7 and more) and a black line around them
    "#ffd400", "#00d5ff", "#ff8ad8", "#7dea45", "#ff9d3d", "#c3a6ff", "#ff8f85", "#5ff0c8", "#f3f389", "#a9c7ff",
)  # fmt: skip
OUTLINE = (Stroke(linewidth=4.0, foreground="black"), Normal())


class Drawn(NamedTuple):
    """An object to draw."""

    mask: Region | None  # COCO's compressed run lengths, at the image's original size
    box: tuple[float, float, float, float]  # x y w h
    label: int
    text: str


def draw_detections(
    split: CocoSplit, results: Sequence[Result], path: Path, count: int, order: Sequence[int] | None = None
) -> None:
    """Write a PNG of `count` images of `split` and their `results`: the first of `order`, indices into `split`.

    Without `order`, evenly spaced images with objects are used. Nothing is written if there are none.
    """
    chosen = _evenly(split.with_objects(), count) if order is None else list(order[:count])
    if not chosen:
        return
    found = Results.of(results)
    least = least_drawn(found)
    rows = [chosen[start : start + PAIRS] for start in range(0, len(chosen), PAIRS)]
    heights = [max(row_heights(split.size(index) for index in row)) for row in rows]
    figure = Figure(figsize=(2 * PAIRS * INCHES, sum(heights) * INCHES + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2 * PAIRS, squeeze=False, height_ratios=heights)
    for panel in axes.flat:
        panel.set_axis_off()
    for place, index in enumerate(chosen):
        left, right = axes[place // PAIRS, 2 * (place % PAIRS) : 2 * (place % PAIRS) + 2]
        image, step = _shrunk(split.read_image(index).permute(1, 2, 0).numpy(), LONGEST)
        _panel(left, image, step, _truth(split, index), f"image {split.image_ids[index]}: ground truth")
        detected = _detected(split, found.of_image(int(split.image_ids[index])), least)
        _panel(right, image, step, detected, f"detections scoring {least:.2f} or more")
    write_figure(path, figure, 110)


def least_drawn(results: Sequence[Result]) -> float:
    """Return the minimum score of drawn detections: half of the highest score."""
    scores = Results.of(results).arrays.scores
    return 0.5 * float(scores.max()) if len(scores) else 0.5


def worst_first(images: Sequence[ImageJudged], least: float) -> list[int]:
    """Return the indices of images with errors, those with the smallest share of correct detections first.

    Of equal images, the one with more errors comes first.
    """

    def mistakes(image: ImageJudged) -> int:
        wrong = sum(one.score >= least and one.verdict not in ("right", "ignored") for one in image.detections)
        return wrong + len(image.unmatched)

    poor = [image for image in images if image.quality(least) < 1]
    return [image.index for image in sorted(poor, key=lambda image: (image.quality(least), -mistakes(image)))]


def draw_objects(image: NDArray[np.uint8], objects: Iterable[Drawn], path: Path) -> None:
    """Write a PNG of one image (H, W, 3) with its objects, in the image's size (at most 2,000 pixels wide)."""
    height, width = image.shape[:2]
    inches = min(width, LONGEST_ALONE) / 100
    figure = Figure(figsize=(inches, inches * height / width), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _panel(axes, *_shrunk(image, LONGEST_ALONE), objects, "", size=max(6.0, 9 * inches / 6.4))
    about = {"Software": DRAWN_BY}
    write_figure(path, figure, 100, metadata=about)


def _evenly(images: NDArray[np.int64], count: int) -> list[int]:
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    chosen: list[int] = images[places].tolist()
    return chosen


def _shrunk(image: NDArray[np.uint8], longest: int) -> tuple[NDArray[np.uint8], int]:
    """Return an image (H, W, 3) with sides of at most `longest`, and the integer factor by which it was reduced."""
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
    """Return the results of one image to draw: the best `MOST` with a score of at least `least`."""
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
    axes: Axes, image: NDArray[np.uint8], step: int, objects: Iterable[Drawn], title: str, size: float = NAME
) -> None:
    """Draw one image with its objects, the largest first so that small ones stay visible.

    `step`: pixels of the original per pixel of `image`, along each side.
    """
    tinted = image.astype(np.float32) / 255
    drawing = sorted(objects, key=lambda drawn: -drawn.box[2] * drawn.box[3])
    alone = len({drawn.label for drawn in drawing}) == 1
    names: list[tuple[float, float]] = []
    for place, drawn in enumerate(drawing):
        colour = to_rgb(COLOURS[(place if alone else drawn.label) % len(COLOURS)])
        if drawn.mask is not None:
            mask = coco_masks.decode(drawn.mask)[::step, ::step].astype(np.bool_)
            tinted[mask] = (1 - TINT) * tinted[mask] + TINT * np.array(colour)
        x, y, width, height = (value / step for value in drawn.box)
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=2.0, path_effects=OUTLINE
            )
        )
        names.append(_free_place(max(x, 0), max(y, 0.07 * image.shape[0]), names, image.shape))
        axes.text(
            *names[-1], printable(drawn.text), fontsize=size, color="black", clip_on=True, parse_math=False,
            verticalalignment="bottom", bbox={"facecolor": colour, "edgecolor": "black", "linewidth": 0.5, "pad": 1.2},
        )  # fmt: skip
    axes.imshow(tinted)
    axes.set_title(title, fontsize=TITLE)


def _free_place(
    x: float, y: float, taken: Sequence[tuple[float, float]], shape: tuple[int, ...]
) -> tuple[float, float]:
    """Return the place of a name: at `x`, `y`, or below the names that are there."""
    height, width = 0.075 * shape[0], 0.35 * shape[1]
    while any(abs(x - left) < width and abs(y - bottom) < height for left, bottom in taken) and y < shape[0]:
        y += height
    return x, y
