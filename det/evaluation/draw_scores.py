"""Plots of a detector's quality: precision-recall curves, and the cost of each kind of error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mimbench.det.evaluation.errors import KINDS, RECALLS, Breakdown
from mimbench.engine.run.atomic import write_with

THRESHOLDS = {"0.5": 0, "0.75": 5, "0.9": 8}  # IoU -> its index in COCO's ten thresholds
HEADINGS = {"box": "boxes", "mask": "masks"}
COLOURS = ("#1f5fa8", "#d9722e", "#3c8f57")


def draw_curves(precision: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Write a PNG with precision-recall curves, mean over categories, at three IoU thresholds, for boxes and masks.

    `precision` holds (10 IoUs, 101 recalls, categories) for "box" and "mask", -1 for a category without objects:
    `det.evaluation.evaluate.CocoMetrics.precision`.
    """
    figure = Figure(figsize=(4.2 * len(precision), 3.6), layout="constrained")
    for place, (kind, all_TRK) in enumerate(precision.items(), start=1):
        axes = figure.add_subplot(1, len(precision), place)
        shown_TRK = all_TRK[:, :, (all_TRK > -1).any((0, 1))]
        for colour, (overlap, threshold) in zip(COLOURS, THRESHOLDS.items(), strict=True):
            curve_R = shown_TRK[threshold].mean(axis=1) if shown_TRK.shape[2] else np.zeros(len(RECALLS))
            name = f"overlap {overlap}: AP {100 * curve_R.mean():.1f}"
            axes.plot(RECALLS, curve_R, color=colour, label=name, linewidth=1.8)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=HEADINGS[kind])
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="lower left")
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def draw_errors(found: Breakdown, path: Path) -> None:
    """Write a PNG with the cost of each kind of error in AP50, and its count."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.add_subplot()
    costs = [found.costs[kind] for kind in KINDS]
    bars = axes.barh(range(len(KINDS)), costs, color=COLOURS[0], height=0.65)
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.invert_yaxis()
    labels = [f"{cost:.1f}  ({found.counts[kind]:,})" for kind, cost in zip(KINDS, costs, strict=True)]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_xlim(0, max(*costs, 1.0) * 1.3)
    axes.set_xlabel("AP50 lost to this kind of mistake, in points (number of mistakes)")
    axes.set_title(f"box AP50 is {found.ap50:.1f}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
