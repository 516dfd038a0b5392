"""LVIS against its own evaluator and detectron2's sampler: golden_lvis.py wrote down what they make of lvis_data.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from det.batches import TrainingImages
from det.coco import read_split
from det.config import Augment
from det.evaluate import CocoMetrics
from det.lvis import RepeatedBatches, drawn_once, repeat_factors

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_lvis.json").read_text())
NAMES = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl",
    "ap_rare": "APr", "ap_common": "APc", "ap_frequent": "APf", "ar300": "AR@300",
    "ar_small": "ARs@300", "ar_medium": "ARm@300", "ar_large": "ARl@300",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ModuleType:
    """lvis_data.py."""
    spec = importlib.util.spec_from_file_location("lvis_data", HERE / "lvis_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path, data: ModuleType) -> Path:
    """The data set on disk."""
    content = data.annotations()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(content))
    for image in content["images"]:
        name = image["coco_url"].rpartition("/")[2]
        Image.new("RGB", (data.WIDTH, data.HEIGHT)).save(tmp_path / "val2017" / name)
    return tmp_path


def test_the_numbers_are_those_of_lvis(root, data) -> None:
    metrics = CocoMetrics(root / "annotations" / "lvis_v1_val.json", benchmark="lvis")(data.results())
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        golden = {f"{prefix}_{ours}": 100 * GOLDEN[kind][theirs] for ours, theirs in NAMES.items()}
        golden = {name: value for name, value in golden.items() if value >= 0}  # there is nothing large
        found = {name: value for name, value in metrics.items() if name.startswith(prefix)}
        assert 1 < golden[f"{prefix}_ap"] < 95
        assert found == pytest.approx(golden, abs=1e-10)


def test_nothing_found(root) -> None:
    metrics = CocoMetrics(root / "annotations" / "lvis_v1_val.json", benchmark="lvis")([])
    assert metrics["box_ap"] == metrics["mask_ap_rare"] == 0


def test_files_are_found_by_their_address(root) -> None:
    split = read_split(root, "train", benchmark="lvis")
    assert split.paths[0] == root / "val2017" / f"{1:012}.jpg"
    assert split.read_image(3).shape == (3, 120, 160)
    assert split.category_ids == (3, 5, 7, 9, 11, 13)
    (root / "annotations" / "lvis_v1_train.json").rename(root / "lvis_v1_train.json")
    assert len(read_split(root, "train", benchmark="lvis")) == 14


def test_rare_images_are_repeated_as_in_detectron2(root) -> None:
    split = read_split(root, "train", benchmark="lvis")
    factors = repeat_factors(split, torch.arange(len(split)), 0.9)
    assert factors.tolist() == GOLDEN["factors"]
    generator = torch.Generator().manual_seed(17)
    assert [drawn_once(factors, generator).tolist() for _ in range(2)] == GOLDEN["draws"]


def test_batches_repeat_and_each_repetition_is_another(root) -> None:
    split = read_split(root, "train", benchmark="lvis")
    images = TrainingImages(split, Augment(), 64)
    factors = torch.full((len(images),), 2.5)
    batches = RepeatedBatches(images, factors, 5, seed=0)
    assert len(batches) == 7
    orders = torch.stack([batches.order(epoch) for epoch in range(40)])
    assert orders.shape == (40, 35)
    assert batches.order(11).tolist() == orders[11].tolist()
    counts = (orders % len(images)).flatten().bincount() / 40
    assert counts.numpy() == pytest.approx([2.5] * len(images), abs=0.35)
    keys = orders[3].tolist()
    assert len(set(keys)) > len(images)
