"""COCO metrics: pycocotools' own, the fast evaluator equal to it, nothing found, and results in COCO's form."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import multiprocessing
import runpy
import socket
from argparse import Namespace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimbench.det.evaluation import evaluators
from mimbench.det.evaluation.evaluate import CocoMetrics, coco_results
from mimbench.det.evaluation.results import Results
from mimbench.det.model.masks import paste
from mimbench.det.model.roi_heads import Detections
from mimbench.engine.data.datasets import coco_files

Result = dict[str, Any]
STATS = (  # the order of COCOeval.stats
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def _from_truth(file) -> list[Result]:
    truth = COCO(str(file))
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": list(annotation["bbox"]),
            "score": 0.9,
            "segmentation": _text(truth.annToRLE(annotation)),
        }
        for annotation in truth.dataset["annotations"]
    ]


def _text(region: dict[str, Any]) -> dict[str, Any]:
    counts = region["counts"]
    return {"size": region["size"], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _jittered(results: list[Result], seed: int) -> list[Result]:
    """Boxes moved, masks of other objects, some of the wrong kind, some twice: every branch of the matching."""
    rng, moved = Random(seed), []
    for result in results * 2:
        x, y, w, h = result["bbox"]
        box = [x + rng.gauss(0, 3), y + rng.gauss(0, 3), w * rng.uniform(0.7, 1.3), h * rng.uniform(0.7, 1.3)]
        category = result["category_id"] if rng.random() < 0.7 else rng.choice([4, 9])
        mask = result["segmentation"] if rng.random() < 0.7 else rng.choice(results)["segmentation"]
        moved.append({**result, "bbox": box, "category_id": category, "segmentation": mask, "score": rng.random()})
    return moved


def _plainly(file, results: list[Result]) -> dict[str, float]:
    """As detectron2 has it: loadRes on copies, without the boxes for masks."""
    metrics = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for name, kind in (("box", "bbox"), ("mask", "segm")):
            own = copy.deepcopy(results)
            if kind == "segm":
                for result in own:
                    result.pop("bbox")
            evaluation = COCOeval(truth, truth.loadRes(own), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip(STATS, evaluation.stats, strict=True):
                if value >= 0:
                    metrics[f"{name}_{key}"] = 100 * value
    return metrics


def _crowded(content) -> None:
    for annotation in content["annotations"][::5]:
        annotation["iscrowd"] = 1


@pytest.mark.parametrize("crowds", [False, True])
def test_the_truth_scores_100(make_coco, edit, crowds) -> None:
    file = coco_files(make_coco(6), "val").annotations
    if crowds:
        edit(file, _crowded)
    results = _from_truth(file)
    before = copy.deepcopy(results)
    metrics = CocoMetrics(file)(results)
    assert {"box_ap", "box_ap50", "box_ap75", "box_ap_small", "mask_ap", "mask_ap50", "mask_ap75"} <= set(metrics)
    assert "box_ap_large" not in metrics  # there is none to be found
    assert list(metrics.values()) == pytest.approx([100] * len(metrics))
    assert results == before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("crowds", [False, True])
def test_both_evaluators_are_pycocotools_to_every_digit(make_coco, edit, monkeypatch, seed, crowds) -> None:
    file = coco_files(make_coco(8), "val").annotations
    if crowds:
        edit(file, _crowded)
    results = _jittered(_from_truth(file), seed)
    metrics = CocoMetrics(file)
    plain = _plainly(file, results)
    assert 0 < plain["box_ap"] < 100
    assert metrics(results) == plain
    precision = {name: value for name, value in plain.items() if "_ap" in name}
    assert metrics(results, fast=True) == precision
    monkeypatch.setattr(evaluators, "AT_ONCE", 1)  # one category at a time
    assert metrics(results, fast=True) == precision
    assert metrics(results) == plain


def test_a_fork_after_the_first_evaluation_is_refused_instead_of_waiting_for_ever(make_coco) -> None:
    file = coco_files(make_coco(2), "val").annotations
    results = _from_truth(file)
    CocoMetrics(file)(results, fast=True)
    forked = multiprocessing.get_context("fork")
    receiver, sender = forked.Pipe(duplex=False)
    process = forked.Process(target=_told, args=(file, results, sender))
    process.start()
    sender.close()
    process.join(30)
    alive = process.is_alive()
    process.kill()
    assert not alive
    assert "forked" in receiver.recv()


def _told(file: Path, results: list[Result], sender: Any) -> None:
    try:
        sender.send(str(CocoMetrics(file)(results, fast=True)))
    except RuntimeError as error:
        sender.send(str(error))


@pytest.mark.parametrize("fast", [False, True])
def test_as_one_category_the_kind_of_an_object_does_not_matter(make_coco, fast) -> None:
    file = coco_files(make_coco(4), "val").annotations
    results = [{**result, "category_id": 1} for result in _from_truth(file)]
    assert CocoMetrics(file)(results, fast=fast)["box_ap"] == 0  # the file's categories have other ids
    metrics = CocoMetrics(file, single_class=True)(results, fast=fast)
    metrics = {name: value for name, value in metrics.items() if "_ar1" not in name}  # there is more than one an image
    assert list(metrics.values()) == pytest.approx([100] * len(metrics))


@pytest.mark.parametrize("fast", [False, True])
def test_nothing_found_scores_0(make_coco, fast) -> None:
    metrics = CocoMetrics(coco_files(make_coco(2), "val").annotations)([], fast=fast)
    assert metrics["box_ap"] == metrics["mask_ap"] == 0
    assert set(metrics.values()) == {0}


def test_each_category_is_pycocotools(make_coco) -> None:
    file = coco_files(make_coco(8), "val").annotations
    results = _jittered(_from_truth(file), 4)
    metrics = CocoMetrics(file)
    metrics(results)
    found = metrics.by_category()
    for identity, name in ((4, "bar"), (9, "disc")):
        for prefix, kind in (("box", "bbox"), ("mask", "segm")):
            with contextlib.redirect_stdout(io.StringIO()):
                truth = COCO(str(file))
                own = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
                evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(own if kind == "segm" else results)), kind)
                evaluation.params.catIds = [identity]
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            assert found[name][f"{prefix}_ap"] == pytest.approx(100 * evaluation.stats[0], abs=1e-12)


def test_categories_of_one_name_keep_their_own_numbers(make_coco, edit) -> None:
    file = coco_files(make_coco(8), "val").annotations
    edit(file, lambda content: [category.update(name="thing") for category in content["categories"]])
    metrics = CocoMetrics(file)
    metrics([result for result in _from_truth(file) if result["category_id"] == 9])
    assert [each["box_ap"] for each in metrics.of_each()] == [0, pytest.approx(100)]
    assert [each["box_ap"] for each in metrics.by_category().values()] == [0, pytest.approx(100)]


def test_results_of_unknown_images_are_refused(make_coco) -> None:
    file = coco_files(make_coco(2), "val").annotations
    results = _from_truth(file)
    results[3]["image_id"] = 77
    with pytest.raises(ValueError, match=r"results\[3\] is for image 77"):
        CocoMetrics(file)(results)


def test_boxes_alone(make_coco) -> None:
    file = coco_files(make_coco(3), "val").annotations
    results = [{key: value for key, value in one.items() if key != "segmentation"} for one in _from_truth(file)]
    metrics = CocoMetrics(file, masks=False)(results)
    assert metrics["box_ap"] == pytest.approx(100)
    assert not any(name.startswith("mask") for name in metrics)


def test_a_file_without_areas_will_do(make_coco, edit) -> None:
    file = coco_files(make_coco(2), "val").annotations

    def strip(content) -> None:
        for annotation in content["annotations"]:
            del annotation["area"], annotation["iscrowd"]

    edit(file, strip)
    assert CocoMetrics(file)(_from_truth(file))["box_ap"] == pytest.approx(100)


def test_results_have_cocos_form() -> None:
    found = Detections(
        boxes=torch.tensor([[1.0, 2.0, 9.0, 12.0], [0.0, 0.0, 16.0, 16.0]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        masks=torch.ones(2, 28, 28),
    )
    results = coco_results(found, 17, (4, 9), (16, 16))
    assert json.loads(json.dumps(results)) == results
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [(17, 9, 0.75), (17, 4, 0.5)]
    assert results[0]["bbox"] == [1.0, 2.0, 8.0, 10.0]
    assert paste(found.masks, found.boxes, (16, 16))[1].all()


def test_arrays_hold_results_as_they_are(make_coco, tmp_path) -> None:
    results = _jittered(_from_truth(coco_files(make_coco(5), "val").annotations), 2)
    arrays = Results.of(results)
    assert list(arrays) == results
    assert (arrays[-1], arrays[3:6]) == (results[-1], results[3:6])
    by_image = sorted(results, key=lambda result: result["image_id"])
    assert list(arrays.sorted()) == by_image
    assert arrays.sorted().of_image(3) == [one for one in by_image if one["image_id"] == 3]
    assert arrays.of_image(99) == []
    arrays.write(tmp_path / "predictions.json")
    assert (tmp_path / "predictions.json").read_text() == json.dumps(results)
    Results.of([]).write(tmp_path / "none.json")
    assert (tmp_path / "none.json").read_text() == "[]"


def test_masks_are_asked_for(make_coco) -> None:
    file = coco_files(make_coco(2), "val").annotations
    boxes = [{key: value for key, value in one.items() if key != "segmentation"} for one in _from_truth(file)]
    with pytest.raises(ValueError, match="a result has no segmentation"):
        CocoMetrics(file)(boxes)


@pytest.mark.parametrize("lvis", [False, True])
def test_the_benchmark_of_memory(monkeypatch, tmp_path, lvis) -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    script = runpy.run_path(str(benchmarks / "evaluation_memory.py"))
    options = Namespace(images=6, each=5, classes=3, objects=2.0, world=1, lvis=lvis, fast=False, send=False)
    (tmp_path / "truth.json").write_text(json.dumps(script["truth"](options)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    try:
        script["work"](0, port, options, tmp_path)  # here: hotcoco's threads do not survive a fork
    finally:
        dist.destroy_process_group()
    assert json.loads((tmp_path / "0.json").read_text()) is True
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 30
