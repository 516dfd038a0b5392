"""Intervals of AP over resampled images: each draw equals pycocotools on a data set with copies of the images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.evaluation.bootstrap import average_precision, intervals, matched, spread
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.engine.run.config import to_text
from mimbench.engine.run.rundir import RunDir
from tests.det.test_evaluate import _from_truth, _jittered

Made = Callable[..., Path]


def copied(content: dict[str, Any], results: Sequence[dict[str, Any]], counts: Sequence[int]) -> tuple[Any, Any]:
    """The data set and the results with image i `counts[i]` times, under ids of their own."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    order = sorted(image["id"] for image in content["images"])
    of_id = {image["id"]: image for image in content["images"]}
    for identity, count in zip(order, counts, strict=True):
        for _ in range(count):
            new = len(images) + 1
            images.append({**of_id[identity], "id": new})
            own = [one for one in content["annotations"] if one["image_id"] == identity]
            annotations += [{**one, "image_id": new, "id": len(annotations) + k + 1} for k, one in enumerate(own)]
            found += [{**one, "image_id": new} for one in results if one["image_id"] == identity]
    return {**content, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize("prefix", ["box", "mask"])
def test_a_draw_is_an_evaluation_of_copied_images(prefix: str, make_coco: Made, tmp_path: Path) -> None:
    file = make_coco(6) / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][3]["iscrowd"] = 1  # detections on it are ignored
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 2 or one["category_id"] != 9]
    file.write_text(json.dumps(content))
    results = _jittered(_from_truth(file), seed=3)
    images, matches = matched(CocoMetrics(file), results, prefix)
    assert images == 6
    generator = np.random.default_rng(0)
    for counts in ([1] * 6, [0, 6, 0, 0, 0, 0], *(np.bincount(generator.integers(6, size=6), minlength=6)
                                                   for _ in range(4))):  # fmt: skip
        other, found = copied(content, results, [int(count) for count in counts])
        (tmp_path / "copied.json").write_text(json.dumps(other))
        wanted = CocoMetrics(tmp_path / "copied.json")(found)[f"{prefix}_ap"]
        assert 100 * average_precision(matches, np.asarray(counts, float)) == pytest.approx(wanted, abs=1e-9)
    low_high = spread(matches, images, 60, "resampling")
    assert low_high.low < low_high.value < low_high.high
    assert spread(matches, images, 60, "resampling") == low_high


def test_intervals_of_a_run(make_coco: Made, tmp_path: Path) -> None:
    data = make_coco(6)
    file = data / "annotations" / "instances_val2017.json"
    results = _jittered(_from_truth(file), seed=3)
    about = {"recipe": "det/test", "stage": "det", "identity": "0", "config": "MaskRCNN"}
    run = RunDir.create(tmp_path / "run", to_text(MaskRCNNConfig(data=str(data))), about)
    with pytest.raises(ValueError, match=r"run has no predictions\.json"):
        intervals(run, 20)
    (run.path / "predictions.json").write_text(json.dumps(results))
    metrics = CocoMetrics(file)(results)
    run.result.write_text(json.dumps({"metrics": metrics}))
    found, images = intervals(run, 20)
    assert (set(found), images) == ({"box_ap", "mask_ap"}, 6)
    assert all(found[name].value == pytest.approx(metrics[name]) for name in found)
    run.result.write_text(json.dumps({"metrics": {**metrics, "box_ap": metrics["box_ap"] + 1}}))
    with pytest.raises(ValueError, match=r"its box_ap is .* but its predictions have .* the data changed"):
        intervals(run, 20)
