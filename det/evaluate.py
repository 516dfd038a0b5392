"""From what a detector finds to COCO's numbers.

    results = coco_results(detections, image_id, category_ids, size)     # one dictionary per detection, COCO's form
    metrics = CocoMetrics(annotation_file)(results)                      # {"box_ap": ..., "mask_ap50": ...}, percent

The number of record is pycocotools'. `fast=True` is faster-coco-eval, which a test holds equal to it; it serves
evaluation during training. Metrics for which the data set has no ground truth (no large objects, say) are left out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import faster_coco_eval
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from det.coco import of_one_category, read_annotations
from det.rle import encode_masks
from det.roi_heads import Detections

C = TypeVar("C", COCO, faster_coco_eval.COCO)
Result = dict[str, Any]  # image_id, category_id, bbox (x y w h), score, segmentation (RLE)

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first six of COCOeval.stats
KINDS = {"box": "bbox", "mask": "segm"}


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int], size: tuple[int, int]) -> list[Result]:
    """Detections in an image of `size` (height, width) as COCO results; labels become the ids of the file."""
    boxes = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1).tolist()
    regions = encode_masks(found.masks, found.boxes, size)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "score": score,
            "segmentation": region,
        }
        for box, score, label, region in zip(boxes, found.scores.tolist(), found.labels.tolist(), regions, strict=True)
    ]


class CocoMetrics:
    """COCO's average precision, for boxes and masks, against one annotation file."""

    def __init__(self, annotations: Path, single_class: bool = False) -> None:
        """Read the ground truth, with `single_class` as if all objects were of one category; it is kept."""
        self.annotations, self.single_class = annotations, single_class
        self._truth = _indexed(COCO(), self._content())
        self._fast_truth: faster_coco_eval.COCO | None = None

    def __call__(self, results: Sequence[Result], *, fast: bool = False) -> dict[str, float]:
        """Metrics in percent: box_ap, box_ap50, box_ap75, box_ap_small, box_ap_medium, box_ap_large, mask_ap, ...

        No results at all give 0 wherever there is something to find.
        """
        metrics: dict[str, float] = {}
        for prefix, kind in KINDS.items():
            with _quiet():
                stats = self._fast_stats(results, kind) if fast else self._stats(results, kind)
            named = zip(NAMES, stats, strict=False)
            metrics |= {f"{prefix}_{name}": 100 * float(value) for name, value in named if value >= 0}
        return metrics

    def _stats(self, results: Sequence[Result], kind: str) -> Sequence[float]:
        found = self._truth.loadRes(_for(kind, results)) if results else self._nothing()
        evaluation = COCOeval(self._truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats: Sequence[float] = evaluation.stats
        return stats

    def _content(self) -> dict[str, Any]:
        content = _completed(self.annotations)
        return of_one_category(content) if self.single_class else content

    def _nothing(self) -> COCO:
        """An empty set of results, which `loadRes` refuses to make."""
        return _indexed(COCO(), {**self._truth.dataset, "annotations": []})

    def _fast_stats(self, results: Sequence[Result], kind: str) -> Sequence[float]:
        if self._fast_truth is None:
            self._fast_truth = _indexed(faster_coco_eval.COCO(), self._content())
        found = self._fast_truth.loadRes(_for(kind, results))
        evaluation = faster_coco_eval.COCOeval_faster(self._fast_truth, found, kind, print_function=_nowhere)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats: Sequence[float] = evaluation.stats
        return stats


def _completed(annotations: Path) -> dict[str, Any]:
    """The ground truth with what COCOeval needs and a file may lack: `iscrowd`, and `area` (of the box, then)."""
    content = read_annotations(annotations)
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return content


def _indexed(coco: C, content: dict[str, Any]) -> C:
    """An empty COCO object, filled."""
    coco.dataset = content
    with _quiet():
        coco.createIndex()
    return coco


def _for(kind: str, results: Sequence[Result]) -> list[Result]:
    """Copies (`loadRes` writes into them); for masks without their boxes, so that areas are those of the masks."""
    left_out = {"bbox": "segmentation", "segm": "bbox"}[kind]
    return [{key: value for key, value in result.items() if key != left_out} for result in results]


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """pycocotools prints its progress and its table."""
    return contextlib.redirect_stdout(io.StringIO())


def _nowhere(*_: object) -> None:
    """faster-coco-eval logs its progress and its table."""
