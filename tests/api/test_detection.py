"""`load_backbone` and `evaluate_coco`: the maps of the detector that is trained, and pycocotools' own numbers."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torchvision.models.detection as torchvision_detection
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import mimbench
from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import save_detector
from tests.det.conftest import write_coco

SHAPE = ViT(width=64, depth=4, heads=1, patch=16, image=64)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.26, 0.27)
Results = list[dict[str, Any]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An encoder with a final norm and image statistics of its own."""
    torch.manual_seed(0)
    state = VisionTransformer(SHAPE, final_norm=True).state_dict()
    save_encoder(tmp_path / "encoder.safetensors", state, EncoderInfo("mae", SHAPE, True, MEAN, STD))
    return tmp_path / "encoder.safetensors"


def test_vitdet_has_the_strides_and_channels_it_says(file: Path) -> None:
    backbone = mimbench.load_backbone(file, image=128, channels=32, window=2)
    assert backbone.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert backbone.channels == dict.fromkeys(backbone.strides, 32)
    assert backbone.out_channels == 32
    assert backbone.training
    assert (backbone.mean, backbone.std) == (pytest.approx(MEAN), pytest.approx(STD))
    for height, width in ((128, 128), (96, 160)):
        maps = backbone(torch.rand(2, 3, height, width))
        assert {name: tuple(one.shape) for name, one in maps.items()} == {
            name: (2, 32, -(-height // stride), -(-width // stride)) for name, stride in backbone.strides.items()
        }
    with pytest.raises(ValueError, match=r"128 x 80 pixels.* multiples of 32"):
        backbone(torch.rand(1, 3, 128, 80))


def test_vitdet_is_the_one_that_detection_trains(file: Path) -> None:
    config = MaskRCNNConfig(data="none", checkpoint=str(file), image=128)
    torch.manual_seed(3)
    wanted = build_detector(config, 5)[0].backbone
    torch.manual_seed(3)
    backbone = mimbench.load_backbone(file, image=128)
    own = backbone.body.state_dict()
    assert own.keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in wanted.state_dict().items())


def test_a_whole_detector_gives_its_trained_pyramid(tmp_path: Path) -> None:
    config = MaskRCNNConfig(
        data="none",
        encoder=SHAPE,
        vitdet=ViTDetConfig(window=2, channels=8, scales=(1.0, 0.5)),
        proposals=Proposals(convs=1, anchor_sizes=(16.0, 24.0, 32.0)),
        heads=Heads(convs=1, channels=8, fc=8),
        image=64,
    )
    model, _ = build_detector(config, 3)
    save_detector(tmp_path / "detector.pth", model, config, (3, 7, 9), ("cat", "dog", "emu"))
    backbone = mimbench.load_backbone(tmp_path / "detector.pth")
    assert backbone.channels == {"p4": 8, "p5": 8, "p6": 8}
    images = torch.rand(1, 3, 64, 64)
    for own, wanted in zip(backbone.eval()(images).values(), model.eval().backbone(images), strict=True):
        assert torch.equal(own, wanted)


def test_plain_is_the_encoders_grid(file: Path) -> None:
    backbone = mimbench.load_backbone(file, kind="plain")
    assert (backbone.strides, backbone.channels) == ({"last_feat": 16}, {"last_feat": 64})
    assert (backbone.mean, backbone.std) == (MEAN, STD)
    encoder = mimbench.load_encoder(file)
    images = torch.rand(2, 3, 64, 96)
    maps = backbone.eval()(encoder.prepare(images))
    assert torch.equal(maps["last_feat"].permute(0, 2, 3, 1), encoder.features(images).grid)
    with pytest.raises(ValueError, match="multiples of 16"):
        backbone(torch.rand(1, 3, 64, 90))


def test_torchvisions_detector_trains_on_it(file: Path) -> None:
    backbone = mimbench.load_backbone(file, image=128, channels=16)
    model = torchvision_detection.FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (96,), (128,)), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(list(backbone.strides)[:4], 7, 2),
        min_size=128,
        max_size=128,
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
    )
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 128, 128)], [target])
    sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in backbone.body.net.parameters()]  # type: ignore[union-attr]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 40


def test_wrong_backbones_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind='fpn' is unknown"):
        mimbench.load_backbone(file, kind="fpn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image=100 must be a multiple of 32"):
        mimbench.load_backbone(file, image=100)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        mimbench.load_backbone(tmp_path / "nowhere.pth")


# ------------------------------------------------------------------------------------------------------ evaluate_coco


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The annotation file of a small data set."""
    return write_coco(tmp_path_factory.mktemp("coco") / "shapes", 6) / "annotations" / "instances_val2017.json"


@pytest.fixture
def predictions(annotations: Path) -> Results:
    """Objects of the data set, moved, some of the wrong category."""
    truth, rng = COCO(str(annotations)), Random(0)
    made = []
    for one in truth.dataset["annotations"]:
        x, y, w, h = one["bbox"]
        region = truth.annToRLE(one)
        counts = region["counts"].decode() if isinstance(region["counts"], bytes) else region["counts"]
        made.append(
            {
                "image_id": one["image_id"],
                "category_id": one["category_id"] if rng.random() < 0.8 else 4,
                "bbox": [x + rng.gauss(0, 2), y, w, h * rng.uniform(0.8, 1.2)],
                "score": rng.random(),
                "segmentation": {"size": region["size"], "counts": counts},
            }
        )
    return made


def _pycocotools(annotations: Path, predictions: Results, kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        left_out = "bbox" if kind == "segm" else "segmentation"
        found = [{key: value for key, value in one.items() if key != left_out} for one in predictions]
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats]


def test_metrics_are_pycocotools(annotations: Path, predictions: Results) -> None:
    metrics = mimbench.evaluate_coco(predictions, annotations)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        stats = _pycocotools(annotations, predictions, kind)
        assert 0 < stats[0] < 100
        assert [metrics[f"{name}_{key}"] for key in ("ap", "ap50", "ap75", "ap_small")] == stats[:4]
        assert metrics[f"{name}_ar100"] == stats[8]


def test_a_file_and_the_fast_evaluator_give_the_same(annotations: Path, predictions: Results, tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    metrics = mimbench.evaluate_coco(predictions, annotations)
    assert mimbench.evaluate_coco(tmp_path / "predictions.json", str(annotations)) == metrics
    fast = mimbench.evaluate_coco(predictions, annotations, fast=True)
    assert fast == {name: value for name, value in metrics.items() if "_ar" not in name}
    boxes = mimbench.evaluate_coco(predictions, annotations, masks=False)
    assert boxes == {name: value for name, value in metrics.items() if name.startswith("box")}
    alone = [{key: value for key, value in one.items() if key != "segmentation"} for one in predictions]
    assert mimbench.evaluate_coco(alone, annotations) == boxes
    assert mimbench.evaluate_coco([], annotations)["box_ap"] == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda one: one.pop("score"), r"predictions\[2\] has no score"),
        (lambda one: one.update(category_id=0), r"predictions\[2\] has category_id 0, .* its ids are 4 to 9"),
        (lambda one: one.update(image_id=77), r"results\[2\] is for image 77"),
        (lambda one: one.update(bbox=[1, 2, 3]), r"predictions\[2\] has bbox \[1, 2, 3\]"),
    ],
)
def test_wrong_predictions_are_named(
    annotations: Path, predictions: Results, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    change(predictions[2])
    with pytest.raises(ValueError, match=complaint):
        mimbench.evaluate_coco(predictions, annotations)


def test_wrong_files_are_named(annotations: Path, tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    for text, complaint in (("{", "is not a JSON file"), ('{"a": 1}', "must hold a list with one dictionary")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"predictions.json {complaint}"):
            mimbench.evaluate_coco(file, annotations)
    with pytest.raises(FileNotFoundError):
        mimbench.evaluate_coco(tmp_path / "nowhere.json", annotations)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        mimbench.evaluate_coco([], tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=r"predictions\[0\] has no segmentation"):
        box = {"image_id": 1, "category_id": 4, "bbox": [0, 0, 1, 1], "score": 1.0}
        mimbench.evaluate_coco([box], annotations, masks=True)
