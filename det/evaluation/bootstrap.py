"""How sure is a detector's AP? Percentile intervals over resampled validation images: `mimbench intervals RUN`.

    intervals(run, 200)    # {"box_ap": Spread(64.0, 61.2, 66.5), "mask_ap": ...} of a finished detection run

Detections are matched to objects once, by pycocotools, image by image; a draw only changes how often each image counts.
An image that is drawn k times adds its detections and objects k times. Duplicates have equal scores, and precision at
the recall thresholds does not depend on their order, so weights are exact: a test compares them with pycocotools on
copies of the images. One draw of 5,000 images with 100 detections each, in 80 categories, takes .3 s on one thread, so
200 draws of boxes and masks take two minutes.
"""

# D detection of a category, T overlap (IoU) threshold, R recall threshold, I image

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.det.evaluation.evaluators import Curves, Part, pycocotools_evaluation, quiet
from mimbench.engine.data.datasets import locate
from mimbench.engine.run.bar import track
from mimbench.engine.run.config import from_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.task import Spread

Numbers = NDArray[np.float64]
NEAR = 0.005  # in AP: the recorded number and that of the predictions are equal but for rounding
LEVEL = 0.95


@dataclass(frozen=True)
class Matches:
    """The detections of one category over all images, best first, and how many objects each image has."""

    image: NDArray[np.int64]  # (D,)
    right: NDArray[np.bool_]  # (T, D): matched to an object
    wrong: NDArray[np.bool_]  # (T, D): matched to none; neither if the match is ignored
    objects: NDArray[np.int64]  # (I,)


def intervals(run: RunDir, draws: int) -> tuple[dict[str, Spread], int]:
    """Return the interval of each AP of a finished run by the metric's name, and the number of validation images.

    Raises:
        ValueError: in one line, if the run has no predictions, or its recorded AP is not that of the predictions.
    """
    file = run.path / "predictions.json"
    result = run.read_result()
    if result is None or not file.is_file():
        raise ValueError(f"{run.path.name} has no predictions.json; only a finished detection run has one")
    config = from_text(MaskRCNNConfig, run.config.read_text(encoding="utf-8"), str(run.config))
    if config.benchmark != "coco":
        raise ValueError(
            f"{run.path.name} was evaluated under {config.benchmark.upper()}'s rules; intervals are COCO's"
        )
    masks = config.heads.masks
    split = read_split(locate(config.data), "val", config.single_class, masks=masks, benchmark=config.benchmark)
    metrics = CocoMetrics(split.files.annotations, config.single_class, masks=masks)
    results = json.loads(file.read_text(encoding="utf-8"))
    found = {}
    for prefix in metrics.kinds:
        name = f"{config.protocol}{prefix}_ap"
        if name in result["metrics"]:
            images, matches = matched(metrics, results, prefix)
            found[name] = spread(matches, images, draws, f"resampling {prefix} AP")
            if abs(found[name].value - result["metrics"][name]) > NEAR:
                raise ValueError(
                    f"{run.path.name}: its {name} is {result['metrics'][name]:.2f}, but its predictions have "
                    f"{found[name].value:.2f} on {config.data}; the data changed since"
                )
    return found, len(split)


def matched(metrics: CocoMetrics, results: Sequence[dict[str, Any]], prefix: str) -> tuple[int, list[Matches]]:
    """Return the number of images, and the matches of each category with objects; `prefix` is "box" or "mask"."""
    places = {number: place for place, number in enumerate(sorted(metrics.numbering.images.values()))}
    found: list[Matches] = []

    def keep(part: Part, kind: str) -> Curves:
        evaluation = pycocotools_evaluation(part, kind)
        params = evaluation.params
        params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]  # objects of all sizes
        with quiet():
            evaluation.evaluate()
            evaluation.accumulate()
        seen = np.array([places[int(image)] for image in params.imgIds])
        for place in range(len(params.catIds)):
            of_images = evaluation.evalImgs[place * len(seen) :][: len(seen)]
            found.append(_sorted(of_images, seen, len(places), params.maxDets[-1], len(params.iouThrs)))
        return Curves(evaluation.eval["precision"], evaluation.eval["recall"])

    metrics.curves(results, prefix, keep)
    return len(places), found


def _sorted(
    of_images: Sequence[dict[str, Any] | None], seen: NDArray[np.int64], images: int, most: int, thresholds: int
) -> Matches:
    """Join pycocotools' matches of one category in the images `seen`, of `images` in all."""
    objects = np.zeros(images, np.int64)
    scores: list[Numbers] = []
    image: list[NDArray[np.int64]] = []
    matched_TD, ignored_TD = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    for place, found in zip(seen.tolist(), of_images, strict=True):
        if found is None:
            continue
        objects[place] = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
        own = np.asarray(found["dtScores"][:most], np.float64)
        scores.append(own)
        image.append(np.full(len(own), place))
        matched_TD.append(found["dtMatches"][:, :most] > 0)
        ignored_TD.append(found["dtIgnore"][:, :most].astype(bool))
    order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="mergesort")
    right, ignored = (np.concatenate(parts, axis=1)[:, order] for parts in (matched_TD, ignored_TD))
    return Matches(
        np.concatenate([np.zeros(0, np.int64), *image])[order].astype(np.int64),
        right & ~ignored,
        ~right & ~ignored,
        objects,
    )


def spread(matches: Sequence[Matches], images: int, draws: int, doing: str, seed: int = 0) -> Spread:
    """Return AP in percent, and its percentile interval over `draws` resamplings of the images."""
    value = average_precision(matches, np.ones(images))
    generator = np.random.default_rng(seed)
    drawn = [average_precision(matches, counts) for counts in track(_counts(generator, images, draws), doing, draws)]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(100 * value, 100 * float(low), 100 * float(high))


def _counts(generator: np.random.Generator, images: int, draws: int) -> Iterator[Numbers]:
    for _ in range(draws):
        yield np.bincount(generator.integers(images, size=images), minlength=images).astype(np.float64)


def average_precision(matches: Sequence[Matches], counts_I: Numbers) -> float:
    """Return AP (0 to 1) if image i counts `counts_I[i]` times; NaN without objects.

    It is COCO's: the mean over thresholds, recalls and categories with objects (COCOeval.accumulate).
    """
    of_each = [found for one in matches if (found := _of_category(one, counts_I)) is not None]
    return float(np.mean(of_each)) if of_each else float("nan")


RECALLS_R = np.linspace(0.0, 1.0, 101)


def _of_category(matches: Matches, counts_I: Numbers) -> float | None:
    objects = float(matches.objects @ counts_I)
    if objects == 0:
        return None
    weight_D = counts_I[matches.image]
    kept = weight_D > 0
    if not kept.any():
        return 0.0
    weight_D = weight_D[kept]
    right_TD, wrong_TD = (np.cumsum(part[:, kept] * weight_D, axis=1) for part in (matches.right, matches.wrong))
    recall_TD = right_TD / objects
    precision_TD = right_TD / (right_TD + wrong_TD + np.spacing(1))
    envelope_TD = np.maximum.accumulate(precision_TD[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for recall_D, envelope_D in zip(recall_TD, envelope_TD, strict=True):
        place_R = np.searchsorted(recall_D, RECALLS_R, side="left")
        total += float(envelope_D[place_R[place_R < len(envelope_D)]].sum())
    return total / (len(recall_TD) * len(RECALLS_R))
