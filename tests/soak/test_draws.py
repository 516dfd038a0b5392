"""Thousands of images through the data pipeline of every published recipe, as loading processes make them.

Recipes whose settings reach the pipeline alike share it. What is rare shows only so: the operation of RandAugment that
ended every fine-tuning came once in 645 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.cls.config import Finetune, Linear
from mimbench.cls.data.crops import BatchAugmentation, finetune_crops, open_splits, probe_crops
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.data.batches import TrainingImages, training_batch
from mimbench.det.data.coco import read_split
from mimbench.engine.data.batches import Batches
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.run import training_batches
from mimbench.seg.config import LinearSegmentationConfig, UPerNetConfig
from mimbench.seg.data.batches import IGNORED
from mimbench.seg.data.split import open_split
from mimbench.seg.upernet import training_batches as segmentation_batches
from tests.soak.twins import twins

pytestmark = pytest.mark.slow
DRAWS = {
    Finetune: 10_000,
    Pretrain: 4_000,
    Linear: 4_000,
    MaskRCNNConfig: 2_000,
    UPerNetConfig: 2_000,
    LinearSegmentationConfig: 2_000,
}
WORKERS = 2


@dataclass(frozen=True)
class Pipeline:
    """A recipe's settings, and what tells pipelines apart."""

    recipe: str
    config: Any

    @property
    def key(self) -> tuple[Any, ...]:
        """What of the settings reaches the pipeline."""
        config = self.config
        if isinstance(config, Finetune):
            mixing = (config.mixup, config.cutmix, config.mixup_probability, config.switch_probability)
            crops = (config.randaugment, config.smallest_crop, config.flip, config.jpeg_decoder)
            return (*crops, *mixing, config.erasing, config.label_smoothing)
        if isinstance(config, Pretrain):
            return config.smallest_crop, config.flip, config.resizing, config.jpeg_decoder
        if isinstance(config, Linear):
            return config.views, config.crop, config.smallest_crop, config.flip, config.jpeg_decoder
        if isinstance(config, UPerNetConfig | LinearSegmentationConfig):
            return config.augment, config.image
        assert isinstance(config, MaskRCNNConfig)
        return config.augment, config.benchmark, config.image, config.heads.masks


def pipelines() -> list[Pipeline]:
    """One for each key."""
    trained = (Pipeline(twin.recipes[0], twin.config) for twin in twins() if isinstance(twin.config, tuple(DRAWS)))
    return list({(type(one.config), one.key): one for one in reversed(list(trained))}.values())[::-1]


@pytest.mark.parametrize("pipeline", pipelines(), ids=lambda pipeline: pipeline.recipe)
def test_thousands_of_draws(
    pipeline: Pipeline, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    config = replace(pipeline.config, compute=replace(pipeline.config.compute, workers=WORKERS))
    made = next(make for kind, make in MAKE.items() if isinstance(config, kind))
    drawn = 0
    for images in made(config, request):
        assert images.dtype in (torch.uint8, torch.float32)
        assert images.float().isfinite().all()
        drawn += len(images)
        if drawn >= DRAWS[type(config)]:
            break
    assert drawn >= DRAWS[type(config)]
    record_property("draws", drawn)


def _finetune(config: Finetune, request: pytest.FixtureRequest) -> Iterator[torch.Tensor]:
    """Mixed and erased batches; targets are shares that sum to one."""
    splits = open_splits(str(request.getfixturevalue("many_images")), config.jpeg_decoder)
    augment = BatchAugmentation(config, splits.classes, IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    batches = Batches(finetune_crops(config, splits.train), config.batch, 0, workers=WORKERS)
    for images, labels in batches.starting_at(0):
        floats, targets = augment(images, labels)
        assert targets.sum(1).allclose(torch.ones(len(targets)))
        assert floats.abs().max() < 10
        yield floats


def _pretrain(config: Pretrain, request: pytest.FixtureRequest) -> Iterator[torch.Tensor]:
    """Crops, and the numbers that masks are drawn from."""
    folder = open_splits(str(request.getfixturevalue("many_images")), config.jpeg_decoder).train
    for sample in training_batches(config, folder).starting_at(0):
        assert ((sample.noise >= 0) & (sample.noise < 1)).all()
        yield sample.image


def _linear(config: Linear, request: pytest.FixtureRequest) -> Iterator[torch.Tensor]:
    folder = open_splits(str(request.getfixturevalue("many_images")), config.jpeg_decoder).train
    for images, _ in Batches(probe_crops(config, folder), config.batch, 0, workers=WORKERS).starting_at(0):
        yield images


def _detection(config: MaskRCNNConfig, request: pytest.FixtureRequest) -> Iterator[torch.Tensor]:
    """Jittered images whose objects lie inside them."""
    directory: Path = request.getfixturevalue("lvis" if config.benchmark == "lvis" else "coco")
    split = read_split(directory, "train", masks=config.heads.masks, benchmark=config.benchmark)
    images = TrainingImages(split, config.augment, config.image, config.heads.masks)
    for batch in Batches(images, 4, 0, collate=training_batch, workers=WORKERS).starting_at(0):
        for (height, width), target in zip(batch["sizes"], batch["targets"], strict=True):
            boxes, masks = target["boxes"], target["masks"]
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
            assert len(masks) == len(boxes) == len(target["labels"])
        yield batch["images"]


def _segmentation(
    config: UPerNetConfig | LinearSegmentationConfig, request: pytest.FixtureRequest
) -> Iterator[torch.Tensor]:
    """Crops whose labels are classes, or ignored."""
    split = open_split(request.getfixturevalue("ade"), "train")
    for batch in segmentation_batches(config, split).starting_at(0):
        assert ((batch["labels"] < len(split.classes)) | (batch["labels"] == IGNORED)).all()
        yield batch["images"]


MAKE: dict[type, Callable[[Any, pytest.FixtureRequest], Iterator[torch.Tensor]]] = {
    Finetune: _finetune,
    Pretrain: _pretrain,
    Linear: _linear,
    MaskRCNNConfig: _detection,
    UPerNetConfig: _segmentation,
    LinearSegmentationConfig: _segmentation,
}
