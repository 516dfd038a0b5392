"""Kinds of detection errors and their cost in AP50: TIDE's breakdown (Bolya et al. 2020), for boxes.

    found = breakdown(split, results)
    found.ap50, found.counts["missed"], found.costs["missed"]     # points of AP50 gained without them

Detections are matched at an IoU of .5, highest score first, as in COCO. An unmatched detection is, in this order,

    localisation     on an object of its category, IoU .1 to .5
    classification   on an object of another category, IoU .5 or more
    duplicate        on an object of its category that a better detection has matched
    background       IoU below .1 with all objects
    both             the rest: on an object of another category, and badly localised

An object without a match, localisation error or classification error is missed. The cost of a kind is the gain in AP50
when its detections are corrected (localisation, classification; removed if the object is already matched), removed
(duplicate, background, both), or when the missed objects are removed. Costs do not add up: errors hide each other.
"""

# D detection, G object of an image

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

from mimbench.det.data.coco import CocoSplit
from mimbench.det.evaluation.results import Result, Results

GOOD, NEAR = 0.5, 0.1  # IoU thresholds
MOST = 100  # detections per image, as in COCO's metrics
RECALLS = np.linspace(0, 1, 101)
Kind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
Verdict = Kind | Literal["right", "ignored"]
KINDS: tuple[Kind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class Judged:
    """A detection and its kind of error."""

    score: float
    label: int
    verdict: Verdict
    target: int = -1  # number in the split of the object it matches or should match; -1 for none


@dataclass(frozen=True)
class ImageJudged:
    """All detections on an image, best first, and its unmatched objects."""

    index: int
    detections: tuple[Judged, ...]
    unmatched: tuple[int, ...]  # objects, by number in the split
    missed: tuple[int, ...]  # those without a localisation or classification error

    def quality(self, least: float) -> float:
        """Return F1 (0 to 1) of the detections with a score of at least `least`."""
        seen = [one for one in self.detections if one.score >= least and one.verdict != "ignored"]
        right = sum(one.verdict == "right" for one in seen)
        objects = len(self.unmatched) + sum(one.verdict == "right" for one in self.detections)
        return 2 * right / (len(seen) + objects) if seen or objects else 1.0


@dataclass(frozen=True)
class Breakdown:
    """AP50, and the count and cost of each kind of error, in percent."""

    ap50: float
    counts: dict[Kind, int]
    costs: dict[Kind, float]
    images: tuple[ImageJudged, ...] = field(repr=False)


def breakdown(split: CocoSplit, results: Sequence[Result]) -> Breakdown:
    """Return the breakdown of `results`, detections on the images of `split`."""
    rank = {identity: label for label, identity in enumerate(split.category_ids)}
    of_split = Results.of(results)
    images = tuple(
        _judged(split, index, (one for one in of_split.of_image(int(identity)) if one["category_id"] in rank), rank)
        for index, identity in enumerate(split.image_ids)
    )
    objects = split.labels[~split.crowd]
    detections = [one for image in images for one in image.detections]
    ap50 = _ap50(detections, objects)
    counts = {kind: sum(one.verdict == kind for one in detections) for kind in KINDS}
    missed = [number for image in images for number in image.missed]
    counts["missed"] = len(missed)
    costs = {kind: _ap50(_without(detections, kind, split.labels), objects) - ap50 for kind in KINDS[:-1]}
    found = np.setdiff1d(np.flatnonzero(~split.crowd), missed)
    costs["missed"] = _ap50(detections, split.labels[found]) - ap50
    return Breakdown(ap50, counts, costs, images)


def _judged(split: CocoSplit, index: int, results: Iterable[Result], rank: dict[int, int]) -> ImageJudged:
    best = sorted(results, key=lambda result: -result["score"])[:MOST]
    numbers = np.arange(split.first[index], split.first[index + 1])
    label_G, crowd_G = split.labels[numbers], split.crowd[numbers]
    label_D = np.array([rank[result["category_id"]] for result in best], dtype=np.int64)
    overlap_DG = _overlaps(best, split.boxes[numbers], crowd_G)
    used_G = np.zeros(len(numbers), dtype=np.bool_)
    chosen = []
    for label, overlap_G in zip(label_D, overlap_DG, strict=True):
        free_G = np.where((label_G == label) & ~crowd_G & ~used_G, overlap_G, -1.0)
        place = int(free_G.argmax()) if len(free_G) and free_G.max() >= GOOD else -1
        if place >= 0:
            used_G[place] = True
        chosen.append(place)
    detections, excused_G = [], np.zeros(len(numbers), dtype=np.bool_)
    for result, label, overlap_G, place in zip(best, label_D.tolist(), overlap_DG, chosen, strict=True):
        verdict: Verdict = "right"
        about = place
        if place < 0:
            verdict, about = _mistake(overlap_G, label_G == label, crowd_G)
        if verdict in ("localisation", "classification"):
            excused_G[about] = True
        target = int(numbers[about]) if about >= 0 else -1
        detections.append(Judged(result["score"], label, verdict, target))
    unmatched = numbers[~used_G & ~crowd_G]
    missed = numbers[~used_G & ~crowd_G & ~excused_G]
    return ImageJudged(index, tuple(detections), tuple(unmatched.tolist()), tuple(missed.tolist()))


def _overlaps(
    results: Sequence[Result], corners_G4: NDArray[np.float64], crowd_G: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the IoU (D, G); for a crowd region, the intersection over the detection's area."""
    if not results or not len(corners_G4):
        return np.zeros((len(results), len(corners_G4)))
    boxes_G4 = np.concatenate([corners_G4[:, :2], corners_G4[:, 2:] - corners_G4[:, :2]], axis=1)
    found_D4 = np.array([result["bbox"] for result in results], dtype=np.float64)
    overlap_DG: NDArray[np.float64] = coco_masks.iou(found_D4, boxes_G4, crowd_G.astype(np.uint8))
    return overlap_DG


def _mistake(
    overlap_G: NDArray[np.float64], same_G: NDArray[np.bool_], crowd_G: NDArray[np.bool_]
) -> tuple[Verdict, int]:
    """Return the kind of an unmatched detection, and the index of its object (-1: none)."""
    if (overlap_G[same_G & crowd_G] >= GOOD).any():
        return "ignored", -1
    own_G = np.where(same_G & ~crowd_G, overlap_G, -1.0)
    other_G = np.where(~same_G & ~crowd_G, overlap_G, -1.0)
    own, other = own_G.max(initial=-1.0), other_G.max(initial=-1.0)
    if NEAR <= own < GOOD:
        return "localisation", int(own_G.argmax())
    if other >= GOOD:
        return "classification", int(other_G.argmax())
    if own >= GOOD:
        return "duplicate", -1
    return ("background" if max(own, other) < NEAR else "both"), -1


def _without(detections: Sequence[Judged], kind: Kind, labels: NDArray[np.int64]) -> list[Judged]:
    """Return the detections after those of `kind` are corrected or removed."""
    taken = {one.target for one in detections if one.verdict == "right"}
    kept = []
    for one in sorted(detections, key=lambda one: -one.score):
        if one.verdict != kind:
            kept.append(one)
        elif one.target >= 0 and one.target not in taken:
            taken.add(one.target)
            kept.append(Judged(one.score, int(labels[one.target]), "right", one.target))
    return kept


def _ap50(detections: Sequence[Judged], objects: NDArray[np.int64]) -> float:
    """Return COCO's average precision in percent, over the categories with objects."""
    counts = np.bincount(objects) if len(objects) else np.zeros(0, dtype=np.int64)
    of_label: dict[int, list[Judged]] = defaultdict(list)
    for one in detections:
        if one.verdict != "ignored":
            of_label[one.label].append(one)
    parts = [_average_precision(of_label[int(label)], int(counts[label])) for label in np.flatnonzero(counts)]
    return 100 * float(np.mean(parts)) if parts else 0.0


def _average_precision(detections: Sequence[Judged], objects: int) -> float:
    best = sorted(detections, key=lambda one: -one.score)
    right = np.cumsum([one.verdict == "right" for one in best])
    if not len(right):
        return 0.0
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(right / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())
