"""Ids that the evaluators do not stand: 0, negative, beyond 63 bits. The ground truth itself scores 100 with all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.det.data.annotations import annotation_findings
from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.engine.data.datasets import coco_files

Change = Callable[[int], int]
IDS: dict[str, tuple[Change, Change, Change]] = {  # of images, categories and annotations
    "from 0": (lambda image: image - 1, lambda category: category - 4, lambda annotation: annotation - 1),
    "negative": (lambda image: -image, lambda category: -category, lambda annotation: -annotation),
    "beyond 63 bits": (lambda i: 2**63 + i, lambda c: 2**64 + c, lambda a: 2**80 + a),
    "mixed": (lambda i: -(2**70) * (i % 2) + i, lambda c: c - 9, lambda a: 3 - a),
}


def renumbered(content: dict[str, Any], kind: str) -> None:
    """Give a file's entries ids of `kind`."""
    of_image, of_category, of_annotation = IDS[kind]
    for image in content["images"]:
        image["id"] = of_image(image["id"])
    for category in content["categories"]:
        category["id"] = of_category(category["id"])
    for annotation in content["annotations"]:
        annotation["id"] = of_annotation(annotation["id"])
        annotation["image_id"] = of_image(annotation["image_id"])
        annotation["category_id"] = of_category(annotation["category_id"])


def as_results(file: Path) -> list[dict[str, Any]]:
    """The objects of an annotation file as detections."""
    annotations = json.loads(file.read_text())["annotations"]
    kept = ("image_id", "category_id", "bbox")
    return [{**{key: one[key] for key in kept}, "score": 0.9} for one in annotations]


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("fast", [False, True])
def test_the_truth_scores_100_whatever_the_ids(make_coco, edit, kind: str, fast: bool) -> None:
    root = make_coco(3)
    file = coco_files(root, "val").annotations
    edit(file, lambda content: renumbered(content, kind))
    split = read_split(root, "val")
    content = json.loads(file.read_text())
    assert split.image_ids.tolist() == sorted(image["id"] for image in content["images"])
    assert list(split.category_ids) == sorted(category["id"] for category in content["categories"])
    metrics = CocoMetrics(file, masks=False)(as_results(file), fast=fast)
    assert metrics["box_ap"] == metrics["box_ap50"] == pytest.approx(100)


def test_wrong_detections_score_the_same_whatever_the_ids(make_coco, edit) -> None:
    """Ids are given in the order of the file's, so that equal scores are sorted alike."""
    scores = set()
    file = coco_files(make_coco(4), "val").annotations
    plain = file.read_text()
    for kind in IDS:
        file.write_text(plain)
        if kind not in ("negative", "mixed"):  # these turn the order of images around
            edit(file, lambda content, kind=kind: renumbered(content, kind))
        results = as_results(file)
        for place, result in enumerate(results):
            result["bbox"] = [value + place % 4 for value in result["bbox"]]
        scores.add(tuple(CocoMetrics(file, masks=False)(results).items()))
    assert len(scores) == 1


@pytest.mark.parametrize("value", ["7", 7.0, True, None, [7], "9" * 5000])
@pytest.mark.parametrize(("name", "key"), [("images", "id"), ("annotations", "image_id"), ("categories", "id")])
def test_ids_that_are_no_whole_numbers_are_refused_before_a_run(make_coco, edit, name, key, value) -> None:
    root = make_coco(1)
    file = coco_files(root, "train").annotations
    edit(file, lambda content: content[name][0].update({key: value}))
    with pytest.raises(ValueError, match=rf"{name}\[0\] .* has no valid {key}; {key} is .* integer") as raised:
        read_split(root, "train")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("digits", [400, 4200])
def test_numbers_of_hundreds_of_digits_are_refused(make_coco, edit, digits: int) -> None:
    root = make_coco(1)
    file = coco_files(root, "train").annotations
    edit(file, lambda content: content["annotations"][1]["bbox"].__setitem__(0, 10**digits))
    with pytest.raises(ValueError, match="no valid bbox"):
        read_split(root, "train")


def test_id_0_is_said_once(make_coco, edit) -> None:
    root = make_coco(3)
    files = coco_files(root, "val")
    edit(files.annotations, lambda content: renumbered(content, "from 0"))
    said = list(annotation_findings(json.loads(files.annotations.read_text()), files))
    assert [finding.severity for finding in said] == ["note"]
    assert said[0].what.startswith("an annotation has id 0, which pycocotools treats as unmatched")
