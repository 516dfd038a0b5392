"""LVIS against its own evaluator and detectron2's sampler: golden_lvis.py wrote down what they make of lvis_data.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mimbench.det.config import Augment
from mimbench.det.data.batches import TrainingImages
from mimbench.det.data.coco import read_split
from mimbench.det.data.repeats import RepeatedBatches, drawn_once, repeat_factors
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.engine.data.datasets import UnfitError
from tests.det.lvis_data import results, write_lvis

GOLDEN = json.loads(Path(__file__).with_name("golden_lvis.json").read_text())
NAMES = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl",
    "ap_rare": "APr", "ap_common": "APc", "ap_frequent": "APf", "ar300": "AR@300",
    "ar_small": "ARs@300", "ar_medium": "ARm@300", "ar_large": "ARl@300",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data set on disk."""
    return write_lvis(tmp_path)


def test_the_numbers_are_those_of_lvis(root) -> None:
    metrics = CocoMetrics(root / "annotations" / "lvis_v1_val.json", benchmark="lvis")(results())
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        golden = {f"{prefix}_{ours}": 100 * GOLDEN[kind][theirs] for ours, theirs in NAMES.items()}
        golden = {name: value for name, value in golden.items() if value >= 0}  # there is nothing large
        found = {name: value for name, value in metrics.items() if name.startswith(prefix)}
        assert 1 < golden[f"{prefix}_ap"] < 95
        assert found == golden


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


@pytest.mark.parametrize(
    ("of", "key", "value", "said"),
    [
        ("images", "neg_category_ids", None, "image 1 has no list of neg_category_ids"),
        ("images", "not_exhaustive_category_ids", None, "image 1 has no list of not_exhaustive_category_ids"),
        ("categories", "frequency", "often", "category 3 has frequency 'often'; use one of r, c, f"),
    ],
)
def test_what_lvis_goes_by_is_asked_for(root, edit, of, key, value, said) -> None:
    file = root / "annotations" / "lvis_v1_train.json"
    edit(file, lambda content: content[of][0].update({key: value}))
    with pytest.raises(UnfitError, match=said):
        read_split(root, "train", benchmark="lvis")


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
