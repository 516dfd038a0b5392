"""Samples and batches: what is left of an image's objects, and how images of unequal size go together."""

from __future__ import annotations

import pytest
import torch

from mimbench.det.config import Augment
from mimbench.det.data.augment import Jitter, fitted, jittered
from mimbench.det.data.batches import TrainingImages, ValidationImages, placed_objects, training_batch, validation_batch
from mimbench.det.data.coco import read_split
from mimbench.engine.data.batches import Batches
from mimbench.engine.data.datasets import coco_files


def test_objects_outside_the_window_are_dropped(make_coco) -> None:
    split = read_split(make_coco(1), "train")
    whole = placed_objects(split, 0, fitted((48, 64), 64))
    assert whole["labels"].tolist() == [1, 0]
    assert len(whole["masks"]) == 2
    left = placed_objects(split, 0, jittered((48, 64), Jitter(False, 2.0, 0.0), 64))  # the left half: the disc
    assert left["labels"].tolist() == [1]
    assert len(left["masks"]) == 1
    mirrored = placed_objects(split, 0, jittered((48, 64), Jitter(True, 2.0, 0.0), 64))
    assert mirrored["labels"].tolist() == [0]
    for target in (whole, left, mirrored):
        low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
        assert (low < high).all()
        assert low.min() >= 0
        assert high.max() <= 64


def test_masks_follow_their_boxes(make_coco) -> None:
    split = read_split(make_coco(1), "train")
    target = placed_objects(split, 0, jittered((48, 64), Jitter(True, 0.8, 0.0), 64))
    disc, bar = target["masks"].rasterise(torch.tensor([0, 1]), target["boxes"], 28).float().mean((1, 2)).tolist()
    assert disc == pytest.approx(3.14159 / 4, abs=0.06)  # a disc in its box
    assert bar > 0.97


def test_a_training_batch_is_padded_to_its_largest_image(make_coco) -> None:
    images = TrainingImages(read_split(make_coco(3), "train"), Augment(smallest=0.3, largest=1.0), 64)
    samples = [images[i] for i in range(3)]
    batch = training_batch(samples)
    assert batch["images"].dtype == torch.uint8
    assert batch["sizes"] == [tuple(image.shape[1:]) for image, _ in samples]
    assert batch["images"].shape[2:] == tuple(max(size) for size in zip(*batch["sizes"], strict=True))
    for place, (image, _), (height, width) in zip(batch["images"], samples, batch["sizes"], strict=True):
        assert torch.equal(place[:, :height, :width], image)
        assert not place[:, height:].any()
        assert not place[:, :, width:].any()
    assert [set(target) for target in batch["targets"]] == [{"boxes", "labels", "masks"}] * 3


def test_the_same_batch_whoever_loads_it(make_coco) -> None:
    images = TrainingImages(read_split(make_coco(4), "train"), Augment(), 64)
    here, elsewhere = (
        next(Batches(images, 2, seed=5, collate=training_batch, workers=workers).starting_at(3)) for workers in (0, 1)
    )
    assert torch.equal(here["images"], elsewhere["images"])
    for one, other in zip(here["targets"], elsewhere["targets"], strict=True):
        assert torch.equal(one["boxes"], other["boxes"])


def test_validation_images_keep_their_order(make_coco) -> None:
    split = read_split(make_coco(3), "val")
    images, sizes, indices = validation_batch([ValidationImages(split, 96)[i] for i in range(3)])
    assert images.shape == (3, 3, 72, 96)
    assert sizes == [(72, 96)] * 3
    assert indices == [0, 1, 2]
    assert ValidationImages(split, 96, range(1, 3, 2))[0][1] == 1


def test_nothing_to_learn_from_is_said(make_coco, edit) -> None:
    root = make_coco(1)
    edit(coco_files(root, "train").annotations, lambda content: content.update(annotations=[]))
    with pytest.raises(ValueError, match="no image with an object"):
        TrainingImages(read_split(root, "train"), Augment(), 64)
