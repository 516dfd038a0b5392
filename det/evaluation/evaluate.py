"""Convert detections to COCO results, and compute COCO's and LVIS's metrics.

    results = coco_results(detections, image_id, category_ids, size)     # one dictionary per detection, COCO's form
    score = CocoMetrics(annotation_file)
    metrics = score(results)                     # {"box_ap": ..., "mask_ap50": ..., "box_ar100": ...}, percent
    score.by_category()                          # {"person": {"box_ap": ..., "mask_ap": ...}, ...} of the same

The reported metrics are pycocotools'. `fast=True` uses hotcoco, whose numbers are the same to every digit; it is used
for evaluation during training. Metrics without ground truth (for example, no large objects) are left out. LVIS's rules
(300 detections per image; categories not annotated on an image do not count there; AP of rare, common and frequent
categories) always use hotcoco, whose numbers are those of LVIS's own evaluator. Tests compare both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from mimbench.det.data.coco import Benchmark, of_one_category, read_annotations
from mimbench.det.evaluation.evaluators import (
    LVIS_DETECTIONS,
    Curves,
    Evaluator,
    Truth,
    best_of_images,
    measured,
    quiet,
    with_hotcoco,
    with_hotcoco_lvis,
    with_pycocotools,
)
from mimbench.det.evaluation.numbering import Numbering
from mimbench.det.evaluation.results import Result, Results
from mimbench.det.evaluation.rle import encode_masks
from mimbench.det.model.roi_heads import Detections
from mimbench.engine.run.bar import working

Numbers = NDArray[np.float64]

PRECISION = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # COCOeval.stats, in this order
RECALL = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
AREAS = ("small", "medium", "large")  # after all sizes, in the curves' order
FREQUENCIES = {"rare": "r", "common": "c", "frequent": "f"}
KINDS = {"box": "bbox", "mask": "segm"}


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int], size: tuple[int, int]) -> list[Result]:
    """Return detections in an image of `size` (height, width) as COCO results; labels become the file's ids."""
    boxes = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1).tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if found.masks.shape[-1]:
        for result, region in zip(results, encode_masks(found.masks, found.boxes, size), strict=True):
            result["segmentation"] = region
    return results


class CocoMetrics:
    """COCO's average precision and recall for boxes and masks, with one annotation file as ground truth."""

    def __init__(
        self,
        annotations: Path,
        single_class: bool = False,
        *,
        masks: bool = True,
        benchmark: Benchmark = "coco",
    ) -> None:
        """Read the ground truth and keep it.

        Args:
            single_class: treat all objects as one category.
            masks: also evaluate masks.
            benchmark: the rules, COCO's or LVIS's.

        Raises:
            ValueError: with `masks`, if an object has no mask.
        """
        self.annotations, self.benchmark = annotations, benchmark
        self.kinds = KINDS if masks else {"box": KINDS["box"]}
        self.precision: dict[str, Numbers] = {}  # of the last call: (thresholds, recalls, categories) for box and mask
        content = read_annotations(annotations)
        content = of_one_category(content) if single_class else content
        self.numbering = Numbering.of(content)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [int(category["id"]) for category in categories]
        self.categories = [str(category["name"]) for category in categories]
        self._truth = Truth.of(content, self.numbering, masks=masks)

    def __call__(self, results: Sequence[Result], *, fast: bool = False) -> dict[str, float]:
        """Return metrics in percent: box_ap, box_ap50, box_ap_small, ..., mask_ap, ...; if not `fast`, box_ar1, ...

        Empty results score 0 on every metric with ground truth.

        Raises:
            ValueError: if a result's image is not in the annotation file, or masks are evaluated and a result has none.
        """
        found = Results.of(results)
        self._known(found)
        lvis = self.benchmark == "lvis"
        if lvis:
            found = best_of_images(found, LVIS_DETECTIONS)
        evaluator = with_hotcoco_lvis if lvis else with_hotcoco if fast else with_pycocotools
        metrics: dict[str, float] = {}
        for prefix, kind in self.kinds.items():
            with working(f"computing {prefix} AP"):
                curves = self._measured(found, kind, evaluator)
            self.precision[prefix] = curves.precision[:, :, :, 0, -1]
            named = self._lvis(curves) if lvis else _coco(curves, kind)
            wanted = [name for name in named if not (fast and name.startswith("ar"))]
            metrics |= {f"{prefix}_{name}": 100 * named[name] for name in wanted if named[name] >= 0}
        return metrics

    def by_category(self) -> dict[str, dict[str, float]]:
        """Return AP of each category with objects in the last call, in percent, in the order of their ids."""
        of_all: dict[str, dict[str, float]] = {}
        for place, (name, found) in enumerate(zip(self.categories, self.of_each(), strict=True)):
            if found:
                of_all[name if name not in of_all else f"{name} ({place + 1})"] = found
        return of_all

    def of_each(self) -> list[dict[str, float]]:
        """Return AP of every category in the order of their ids; an empty dictionary without objects."""
        shares_of = (
            {prefix: precision[:, :, place] for prefix, precision in self.precision.items()}
            for place in range(len(self.categories))
        )
        return [
            {
                f"{prefix}_ap": 100 * float(share[share > -1].mean()) for prefix, share in shares.items()
                if (share > -1).any()
            }
            for shares in shares_of
        ]  # fmt: skip

    def _known(self, results: Results) -> None:
        foreign = [place for place, image in enumerate(results.image_ids) if image not in self.numbering.images]
        numbers = np.flatnonzero(np.isin(results.arrays.images, foreign))
        if len(numbers):
            raise ValueError(
                f"results[{numbers[0]}] is for image {results[int(numbers[0])]['image_id']}, which is not in "
                f"{self.annotations}; use the annotation file of the images that were detected on"
            )

    def curves(self, results: Sequence[Result], prefix: str, evaluator: Evaluator) -> Curves:
        """Return the curves of "box" or "mask" that `evaluator` computes.

        Raises:
            ValueError: as `__call__`.
        """
        found = Results.of(results)
        self._known(found)
        return self._measured(found, self.kinds[prefix], evaluator)

    def _measured(self, results: Results, kind: str, evaluator: Evaluator) -> Curves:
        if kind == KINDS["mask"] and len(results) and not results.has_masks:
            raise ValueError("a result has no segmentation; give each one, or measure boxes alone (masks=False)")
        return measured(self._truth, self.numbering, results, kind, evaluator)

    def _lvis(self, curves: Curves) -> dict[str, float]:
        """Return the metrics of LVIS's rules by name, as its evaluator summarises them."""
        precision, recall = curves.precision[..., -1], curves.recall[..., -1]  # TRKA and TKA
        found = {
            "ap": _mean(precision[..., 0]),
            "ap50": _mean(precision[0, ..., 0]),
            "ap75": _mean(precision[5, ..., 0]),
        }
        found |= {f"ap_{name}": _mean(precision[..., area]) for area, name in enumerate(AREAS, start=1)}
        for name, letter in FREQUENCIES.items():
            places = [place for place, one in enumerate(self._truth.categories) if one["frequency"] == letter]
            found[f"ap_{name}"] = _mean(precision[:, :, places, 0])
        found[f"ar{LVIS_DETECTIONS}"] = _mean(recall[..., 0])
        return found | {f"ar_{name}": _mean(recall[..., area]) for area, name in enumerate(AREAS, start=1)}


def _mean(values: Numbers) -> float:
    """Return the mean over categories with objects; -1 if there are none."""
    counted = values[values > -1]
    return float(np.mean(counted)) if len(counted) else -1.0


def _coco(curves: Curves, kind: str) -> dict[str, float]:
    """Return the metrics of COCO's rules by name, as pycocotools summarises them."""
    evaluation = COCOeval(iouType=kind)
    evaluation.eval = curves._asdict()
    with quiet():
        evaluation.summarize()
    return dict(zip(PRECISION + RECALL, map(float, evaluation.stats), strict=True))
