"""Draw segmentations: images with ground truth and prediction, and the confusion of classes.

    draw_segmentations(split, predictions, places, path)
    draw_confusion(confusion, split.classes, path)

Classes keep their colour from image to image; ignored pixels are black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mimbench.engine.run.figure import printable, row_heights, write_figure
from mimbench.seg.data.split import LabelledSplit
from mimbench.seg.evaluation.metric import IGNORED, Confusion

INCHES = 3.0  # width of one image
MOST = 20  # classes in the picture of confusions
CHARACTERS = 60  # of a title in a line, where matplotlib cannot wrap it
NAMED = 6  # classes named above a prediction


def palette(classes: int) -> NDArray[np.uint8]:
    """Return a colour for each id (256, 3); black for ids without a class."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for index in range(classes):
        number = index + 1
        for place in range(8):  # the scheme of PASCAL VOC
            for channel in range(3):
                colours[index, channel] |= ((number >> channel) & 1) << (7 - place)
            number >>= 3
    return colours


def draw_segmentations(
    split: LabelledSplit, predictions: Mapping[int, NDArray[np.uint8]], places: Sequence[int], path: Path
) -> None:
    """Write a PNG of the images at `places` of `split`: image, ground truth, prediction. No places, no file."""
    places = [place for place in places if place in predictions]
    if not places:
        return
    colours = palette(len(split.classes))
    pairs = [split.pair(place) for place in places]
    heights = row_heights((labels.shape[0], labels.shape[1]) for _, labels in pairs)
    figure = Figure(figsize=(3 * INCHES, sum(heights) * INCHES + 0.4 * len(places)), layout="constrained")
    axes = figure.subplots(len(places), 3, squeeze=False, height_ratios=heights)
    for row, place, (image, labels) in zip(axes, places, pairs, strict=True):
        predicted = predictions[place]
        known = labels != IGNORED
        right = (predicted[known] == labels[known]).mean() if known.any() else float("nan")
        panels = (
            (image[..., ::-1], Path(split.name(place)).name),
            (colours[labels], _named(labels, split.classes)),
            (colours[predicted], f"{100 * right:.0f} % right: {_named(predicted, split.classes)}"),
        )
        for panel, (pixels, title) in zip(row, panels, strict=True):
            panel.imshow(pixels, interpolation="nearest")
            # matplotlib's wrapping measures what is between two dollar signs as a formula, and fails if it is none
            formula = "$" in title
            text = fill(printable(title), CHARACTERS) if formula else printable(title)
            panel.set_title(text, fontsize=6, wrap=not formula, parse_math=False)
            panel.set_axis_off()
    write_figure(path, figure, 110)


def _named(labels: NDArray[np.uint8], classes: Sequence[str]) -> str:
    """Return the names of the classes that cover most of a label map."""
    counts = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    order = [int(index) for index in np.argsort(-counts, kind="stable")[:NAMED] if counts[index]]
    return ", ".join(classes[index] for index in order)


def draw_confusion(confusion: Confusion, classes: Sequence[str], path: Path) -> None:
    """Write a PNG of the confusion matrix of the `MOST` most frequent classes, in % of each class's pixels."""
    counts = confusion.counts.cpu().numpy()
    order = np.argsort(-counts.sum(1), kind="stable")[:MOST]
    order = np.sort(order[counts.sum(1)[order] > 0])
    if not len(order):
        return
    shares = counts[np.ix_(order, order)] / counts.sum(1)[order][:, None]
    side = 2.2 + 0.32 * len(order)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(100 * shares, vmin=0, vmax=100, cmap="Blues")
    names = [classes[index] for index in order]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("ground truth")
    figure.colorbar(drawn, label="% of the class's pixels", shrink=0.8)
    write_figure(path, figure, 110)
