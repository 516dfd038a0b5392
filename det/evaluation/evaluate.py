"""Convert detections to COCO results, and compute COCO's and LVIS's metrics.

    results = coco_results(detections, image_id, category_ids, size)     # one dictionary per detection, COCO's form
    score = CocoMetrics(annotation_file)
    metrics = score(results)                     # {"box_ap": ..., "mask_ap50": ..., "box_ar100": ...}, percent
    score.by_category()                          # {"person": {"box_ap": ..., "mask_ap": ...}, ...} of the same

The reported metrics are pycocotools'. `fast=True` uses faster-coco-eval, which a test compares with pycocotools; it is
used for evaluation during training. Metrics without ground truth (for example, no large objects) are left out. LVIS's
rules (300 detections per image; categories not annotated on an image do not count there; AP of rare, common and
frequent categories) always use faster-coco-eval, which a test compares with LVIS's own evaluator.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import faster_coco_eval
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimbench.det.data.coco import Benchmark, of_one_category, read_annotations
from mimbench.det.evaluation.numbering import Numbering
from mimbench.det.evaluation.rle import encode_masks
from mimbench.det.model.roi_heads import Detections
from mimbench.engine.run.bar import working

C = TypeVar("C", COCO, faster_coco_eval.COCO)
Result = dict[str, Any]  # image_id, category_id, bbox (x y w h), score, segmentation (RLE, with masks)
Numbers = NDArray[np.float64]

PRECISION = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # COCOeval.stats, in this order
RECALL = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
LVIS = {
    "ap": "AP_all", "ap50": "AP_50", "ap75": "AP_75", "ap_small": "AP_small", "ap_medium": "AP_medium",
    "ap_large": "AP_large", "ap_rare": "APr", "ap_common": "APc", "ap_frequent": "APf", "ar300": "AR_all",
    "ar_small": "AR_small", "ar_medium": "AR_medium", "ar_large": "AR_large",
}  # fmt: skip
LVIS_DETECTIONS = 300  # per image, over all categories
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
        """
        self.annotations, self.single_class, self.benchmark = annotations, single_class, benchmark
        self.kinds = KINDS if masks else {"box": KINDS["box"]}
        self.precision: dict[str, Numbers] = {}  # of the last call: (thresholds, recalls, categories) for box and mask
        content = self._content()
        self.numbering = Numbering.of(content)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [int(category["id"]) for category in categories]
        self.categories = [str(category["name"]) for category in categories]
        self._truth = _indexed(COCO(), self.numbering.truth(content)) if benchmark == "coco" else None
        self._fast_truth: faster_coco_eval.COCO | None = None

    def __call__(self, results: Sequence[Result], *, fast: bool = False) -> dict[str, float]:
        """Return metrics in percent: box_ap, box_ap50, box_ap_small, ..., mask_ap, ...; if not `fast`, box_ar1, ...

        Empty results score 0 on every metric with ground truth.

        Raises:
            ValueError: if a result's image is not in the annotation file.
        """
        self._known(results)
        results = self.numbering.results(results)
        metrics: dict[str, float] = {}
        for prefix, kind in self.kinds.items():
            with working(f"computing {prefix} AP"), _quiet():
                named = (
                    self._lvis(results, kind, prefix)
                    if self.benchmark == "lvis"
                    else (self._fast(results, kind, prefix) if fast else self._record(results, kind, prefix))
                )
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

    def _known(self, results: Sequence[Result]) -> None:
        for place, result in enumerate(results):
            if result["image_id"] not in self.numbering.images:
                raise ValueError(
                    f"results[{place}] is for image {result['image_id']}, which is not in {self.annotations}; "
                    "use the annotation file of the images that were detected on"
                )

    def _record(self, results: Sequence[Result], kind: str, prefix: str) -> dict[str, float]:
        assert self._truth is not None
        found = self._truth.loadRes(_for(kind, results)) if results else self._nothing(self._truth)
        evaluation = COCOeval(self._truth, found, kind)
        return self._measured(evaluation, prefix)

    def _measured(self, evaluation: Any, prefix: str) -> dict[str, float]:
        """Return the metrics of either evaluator under COCO's rules, by name."""
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        self.precision[prefix] = evaluation.eval["precision"][:, :, :, 0, -1]
        return dict(zip(PRECISION + RECALL, map(float, evaluation.stats), strict=False))

    def _content(self) -> dict[str, Any]:
        content = read_annotations(self.annotations)
        return of_one_category(content) if self.single_class else content

    @staticmethod
    def _nothing(truth: COCO) -> COCO:
        """Return an empty set of results, which `loadRes` does not support."""
        return _indexed(COCO(), {**truth.dataset, "annotations": []})

    def _fast(self, results: Sequence[Result], kind: str, prefix: str) -> dict[str, float]:
        truth = self._for_the_fast()
        found = truth.loadRes(_for(kind, results))
        evaluation = faster_coco_eval.COCOeval_faster(truth, found, kind, print_function=_nowhere)
        return self._measured(evaluation, prefix)

    def _lvis(self, results: Sequence[Result], kind: str, prefix: str) -> dict[str, float]:
        truth = self._for_the_fast()
        found = truth.loadRes(_for(kind, _best(results, LVIS_DETECTIONS)))
        evaluation = faster_coco_eval.COCOeval_faster(truth, found, kind, print_function=_nowhere, lvis_style=True)
        evaluation.params.maxDets = [LVIS_DETECTIONS]
        self._measured(evaluation, prefix)
        return {name: float(evaluation.stats_as_dict[theirs]) for name, theirs in LVIS.items()}

    def _for_the_fast(self) -> faster_coco_eval.COCO:
        if self._fast_truth is None:
            truth = self.numbering.truth(self._content())
            self._fast_truth = _indexed(faster_coco_eval.COCO(), truth)
        return self._fast_truth


def _indexed(coco: C, content: dict[str, Any]) -> C:
    """Fill an empty COCO object with `content` and return it."""
    coco.dataset = content
    with _quiet():
        coco.createIndex()
    return coco


def _for(kind: str, results: Sequence[Result]) -> list[Result]:
    """Return copies (`loadRes` writes into them); for masks without boxes, so that areas come from the masks."""
    left_out = {"bbox": "segmentation", "segm": "bbox"}[kind]
    return [{key: value for key, value in result.items() if key != left_out} for result in results]


def _best(results: Sequence[Result], count: int) -> list[Result]:
    """Return the `count` highest-scoring results of each image, image by image."""
    of_image: dict[int, list[Result]] = {}
    for result in results:
        of_image.setdefault(result["image_id"], []).append(result)
    return [
        result for found in of_image.values()
        for result in sorted(found, key=lambda result: -result["score"])[:count]
    ]  # fmt: skip


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Return a context that suppresses pycocotools' printed progress and table."""
    return contextlib.redirect_stdout(io.StringIO())


def _nowhere(*_: object) -> None:
    """Discard faster-coco-eval's log of progress and table."""
