"""Precision and recall of detections, by pycocotools or hotcoco, a few categories at a time.

    truth = Truth.of(content, numbering, masks=True)
    curves = measured(truth, results, "segm", with_pycocotools)      # or with_hotcoco, with_hotcoco_lvis
    curves.precision                                                 # (T, R, K, A, M), -1 without objects

COCO's and LVIS's rules look at one category at a time (LVIS's limit of detections per image is applied before), so
evaluating by categories changes no digit. pycocotools holds 5 kB for each detection that it is evaluating, and
dictionaries of all images times all categories; here that is only so for `AT_ONCE` detections.
"""

# T IoU threshold, R recall, K category, A range of areas, M limit of detections per image

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimbench.det.evaluation.numbering import Entry, Numbering
from mimbench.det.evaluation.results import Result, Results

Numbers = NDArray[np.float64]

AT_ONCE = 100_000  # detections evaluated at once, more only if a category has more
LVIS_DETECTIONS = 300  # per image, over all categories
UNKNOWN = 0  # number of a category that is not in the file: its detections do not count
KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")  # of an annotation


class Curves(NamedTuple):
    """What all metrics are means of; -1 for a category without objects."""

    precision: Numbers  # (T, R, K, A, M)
    recall: Numbers  # (T, K, A, M)


@dataclass(frozen=True)
class Part:
    """The ground truth and the detections of some categories."""

    images: list[Entry]  # those with an object or a detection
    categories: list[Entry]
    annotations: list[Entry]
    results: Results
    chosen: NDArray[np.int64]  # the part's detections in `results`, in their order
    image_numbers: NDArray[np.int64]  # their images' and categories' numbers
    category_numbers: NDArray[np.int64]

    @property
    def content(self) -> Entry:
        """The ground truth in COCO's form; evaluators write into its annotations, so they are copies."""
        annotations = [dict(annotation) for annotation in self.annotations]
        return {"info": {}, "images": self.images, "categories": self.categories, "annotations": annotations}

    def entries(self, kind: str) -> list[Result]:
        """Return the detections in COCO's form; for masks without boxes, so that areas come from the masks."""
        arrays = self.results.arrays
        rows = zip(
            self.image_numbers.tolist(),
            self.category_numbers.tolist(),
            arrays.scores[self.chosen].tolist(),
            strict=True,
        )
        found: list[Result] = [
            {"image_id": image, "category_id": label, "score": score} for image, label, score in rows
        ]
        key, values = (
            ("bbox", arrays.boxes[self.chosen].tolist())
            if kind == "bbox"
            else ("segmentation", self.results.regions(self.chosen))
        )
        for entry, value in zip(found, values, strict=True):
            entry[key] = value
        return found


Evaluator = Callable[[Part, str], Curves]  # of a part, and "bbox" or "segm"


@dataclass(frozen=True)
class Truth:
    """Numbered ground truth: images and categories by their numbers, annotations by category, masks as RLE."""

    images: dict[int, Entry]
    categories: list[Entry]  # by number
    annotations: list[list[Entry]]  # of each of them

    @classmethod
    def of(cls, content: Entry, numbering: Numbering, *, masks: bool) -> Truth:
        """Return the ground truth of an annotation file's content.

        Raises:
            ValueError: with `masks`, if an annotation has none.
        """
        numbered = numbering.truth(content)
        images = {image["id"]: image for image in numbered["images"]}
        categories = sorted(numbered["categories"], key=lambda category: int(category["id"]))
        of_category: list[list[Entry]] = [[] for _ in categories]
        for annotation in numbered["annotations"]:
            kept = {key: annotation[key] for key in KEPT[:-1]}
            if masks:
                kept["segmentation"] = _region(annotation, images[annotation["image_id"]])
            of_category[annotation["category_id"] - 1].append(kept)
        return cls(images, categories, of_category)


def _region(annotation: Entry, image: Entry) -> Any:
    """Return an annotation's mask as compressed RLE, as COCO.annToRLE does."""
    region = annotation.get("segmentation")
    if not region:
        raise ValueError(f"an object of image {image.get('file_name', image['id'])} has no mask: measure boxes alone")
    height, width = image["height"], image["width"]
    if isinstance(region, list):
        return coco_masks.merge(coco_masks.frPyObjects(region, height, width))
    return coco_masks.frPyObjects(region, height, width) if isinstance(region["counts"], list) else region


def measured(truth: Truth, numbering: Numbering, results: Results, kind: str, evaluate: Evaluator) -> Curves:
    """Return the curves of all categories, evaluated part by part."""
    precision: Numbers | None = None
    recall: Numbers | None = None
    for places, part in _parts(truth, numbering, results):
        of_part = evaluate(part, kind)
        if precision is None or recall is None:
            every = len(truth.categories)
            precision, recall = (
                -np.ones(_with(array.shape, axis, every)) for array, axis in zip(of_part, (2, 1), strict=True)
            )
        precision[:, :, places], recall[:, places] = of_part
    if precision is None or recall is None:  # no objects at all
        every = len(truth.categories)
        return Curves(-np.ones((10, 101, every, 4, 3)), -np.ones((10, every, 4, 3)))
    return Curves(precision, recall)


def _with(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _parts(truth: Truth, numbering: Numbering, results: Results) -> Iterator[tuple[list[int], Part]]:
    """Yield the places of some categories that have objects, and their part."""
    image_N = np.array([numbering.images[i] for i in results.image_ids], dtype=np.int64)[results.arrays.images]
    of_label = np.array([numbering.categories.get(i, UNKNOWN) for i in results.category_ids], dtype=np.int64)
    category_N = of_label[results.arrays.categories]
    order_N = category_N.argsort(kind="stable")
    ends = np.searchsorted(category_N[order_N], np.arange(1, len(truth.categories) + 2))
    for places in _divided(truth, np.diff(ends)):
        chosen = np.sort(np.concatenate([order_N[ends[place] : ends[place + 1]] for place in places]))
        annotations = [annotation for place in places for annotation in truth.annotations[place]]
        seen = {annotation["image_id"] for annotation in annotations} | set(np.unique(image_N[chosen]).tolist())
        yield (
            places,
            Part(
                images=[truth.images[number] for number in sorted(seen)],
                categories=[truth.categories[place] for place in places],
                annotations=annotations,
                results=results,
                chosen=chosen,
                image_numbers=image_N[chosen],
                category_numbers=category_N[chosen],
            ),
        )


def _divided(truth: Truth, counts_K: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield groups of categories with objects and together at most `AT_ONCE` detections."""
    group: list[int] = []
    held = 0
    for place, count in enumerate(counts_K.tolist()):
        if not truth.annotations[place]:
            continue
        if group and held + count > AT_ONCE:
            yield group
            group, held = [], 0
        group.append(place)
        held += count
    if group:
        yield group


def with_pycocotools(part: Part, kind: str) -> Curves:
    """Return the curves that pycocotools computes: the numbers of record."""
    evaluation = pycocotools_evaluation(part, kind)
    with quiet():
        evaluation.evaluate()
        evaluation.accumulate()
    return Curves(evaluation.eval["precision"], evaluation.eval["recall"])


def pycocotools_evaluation(part: Part, kind: str) -> COCOeval:
    """Return pycocotools' evaluation of a part, nothing matched yet."""
    with quiet():
        truth = COCO()
        truth.dataset = part.content
        truth.createIndex()
        entries = part.entries(kind)
        if entries:
            found = truth.loadRes(entries)
        else:  # which loadRes does not support
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        return COCOeval(truth, found, kind)


def with_hotcoco(part: Part, kind: str) -> Curves:
    """Return the same from hotcoco, in a fraction of the time."""
    return _hotcoco(part, kind, lvis=False)


def with_hotcoco_lvis(part: Part, kind: str) -> Curves:
    """Return the curves under LVIS's rules, equal to LVIS's own evaluator; M is 1."""
    return _hotcoco(part, kind, lvis=True)


_hotcoco_runs_in: set[int] = set()  # process ids; a forked process inherits its parent's


def _hotcoco(part: Part, kind: str, lvis: bool) -> Curves:
    """Return hotcoco's curves.

    Raises:
        RuntimeError: in a process that was forked after hotcoco's first use: its threads do not survive a fork, and the
            process would wait for ever.
    """
    import hotcoco

    if _hotcoco_runs_in - {os.getpid()}:
        raise RuntimeError(
            "this process was forked from one that had already evaluated detections, and hotcoco's threads do not "
            "survive a fork; start it with multiprocessing's `spawn`, or fork it before the first evaluation"
        )
    _hotcoco_runs_in.add(os.getpid())
    with quiet():
        truth = hotcoco.COCO(part.content)
        found = truth.load_res(_for_hotcoco(part, kind))
        evaluation = hotcoco.COCOeval(truth, found, kind, lvis_style=lvis)
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    assert curves is not None
    return Curves(np.asarray(curves["precision"]), np.asarray(curves["recall"]))


def _for_hotcoco(part: Part, kind: str) -> Any:
    """Return the detections of a part: boxes as an array (N, 7), masks in COCO's form."""
    if kind == "segm" or not len(part.chosen):
        return part.entries(kind)
    arrays = part.results.arrays
    columns = (
        part.image_numbers[:, None],
        arrays.boxes[part.chosen],
        arrays.scores[part.chosen, None],
        part.category_numbers[:, None],
    )
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def best_of_images(results: Results, count: int) -> Results:
    """Return the `count` highest-scoring results of each image, image by image."""
    arrays = results.arrays
    order_N = np.lexsort((-arrays.scores, arrays.images))
    image_N = arrays.images[order_N]
    rank_N = np.arange(len(order_N)) - np.searchsorted(image_N, image_N, side="left")
    return results.taken(order_N[rank_N < count])


def quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Return a context that suppresses the evaluators' printed progress and table."""
    return contextlib.redirect_stdout(io.StringIO())
