"""The kinds of mistakes, one by one, and AP50 as COCO's evaluator has it."""

from __future__ import annotations

from random import Random

import pytest

from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.errors import KINDS, breakdown
from mimbench.det.evaluation.evaluate import CocoMetrics

DISC, BAR = 9, 4  # category ids


def _results(split, changes) -> list[dict]:
    """The truth, of which `changes` makes something else for each object of the first image."""
    results = []
    for index, identity in enumerate(split.image_ids):
        for place in range(split.first[index], split.first[index + 1]):
            x0, y0, x1, y1 = split.boxes[place].tolist()
            kind = split.category_ids[split.labels[place]]
            result = {"image_id": int(identity), "category_id": kind, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9}
            results += changes(result) if index == 0 else [result]
    return results


def _moved(result, share: float) -> dict:
    x, y, w, h = result["bbox"]
    return {**result, "bbox": [x + share * w, y, w, h]}


def _other(result) -> dict:
    return {**result, "category_id": DISC if result["category_id"] == BAR else BAR}


MISTAKES = {
    "classification": lambda result: [_other(result)],
    "localisation": lambda result: [_moved(result, 0.6)],
    "both": lambda result: [_moved(_other(result), 0.6)],
    "duplicate": lambda result: [result, {**result, "score": 0.8}],
    "background": lambda result: [result, {**result, "bbox": [0, 0, 3, 3], "score": 0.95}],
    "missed": lambda result: [],
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_kind_is_told_and_counted(make_coco, kind) -> None:
    split = read_split(make_coco(3), "val")
    found = breakdown(split, _results(split, MISTAKES[kind]))
    missed = 2 if kind in ("both", "missed") else 0  # what is badly placed and misnamed is about no object
    assert found.counts == {name: 2 * (name == kind) for name in KINDS} | {"missed": missed}
    if kind != "duplicate":  # those come after all that is right, and cost nothing
        assert max(found.costs, key=lambda name: found.costs[name]) in (kind, "missed")
        assert found.costs[kind] + (found.costs["missed"] if kind == "both" else 0) > 5
    assert found.images[0].quality(0.5) < 1
    assert found.images[1].quality(0.5) == 1


def test_ap50_is_cocos(make_coco) -> None:
    split = read_split(make_coco(8), "val")
    rng, results = Random(0), []
    for result in _results(split, lambda result: [result]) * 2:
        x, y, w, h = result["bbox"]
        box = [x + rng.gauss(0, 3), y + rng.gauss(0, 3), w * rng.uniform(0.7, 1.3), h * rng.uniform(0.7, 1.3)]
        results.append(
            {
                **result,
                "bbox": box,
                "score": rng.random(),
                "category_id": rng.choice([DISC, BAR, result["category_id"]]),
            }
        )
    found = breakdown(split, results)
    metrics = CocoMetrics(split.files.annotations, masks=False)(results)
    assert 5 < metrics["box_ap50"] < 95
    assert found.ap50 == pytest.approx(metrics["box_ap50"], abs=1e-9)
    assert sum(found.counts.values()) > 10


def test_nothing_found_is_all_missed(make_coco) -> None:
    split = read_split(make_coco(2), "val")
    found = breakdown(split, [])
    assert found.ap50 == 0
    assert found.counts["missed"] == 4
    assert [image.quality(0.5) for image in found.images] == [0, 0]
