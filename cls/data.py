"""Images for classification: the crops of training and evaluation, and what is done to whole batches.

Items are uint8 (3, S, S) and a label; floats are made on the device (`engine.images.normalise`). Three views:

    CentreCrops      evaluation: short side to 256, middle 224 (above 224 px no margin is cut off)
    TimmCrops        fine-tuning: random crop, flip and RandAugment by timm
    OneDrawCrops     linear probe: the crop of BYOL's and MAE's probe, drawn once and clipped to the image

`BatchAugmentation` erases and mixes on the device, through timm as well. All randomness comes from the generators that
`engine.data.SeededDataset` (items) and `engine.step` (batches) seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset

from cls.config import Finetune, Linear
from engine.data import MapStyle
from engine.datasets import locate
from engine.images import Box, ImageFolder, centre_crop, cut, normalise
from engine.process import rank_and_world

# B image of a batch, C class, H x W size of an image, S side of a crop

Item = tuple[Tensor, int]
RATIO = (3 / 4, 4 / 3)  # width over height of a random crop


@dataclass(frozen=True)
class Splits:
    """The two splits of a data set; labels number the training split's classes."""

    train: ImageFolder
    val: ImageFolder

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.train.classes)

    def facts(self) -> dict[str, object]:
        """What of the data changes the numbers."""
        return {
            "classes": self.classes,
            "train_images": len(self.train),
            "val_images": len(self.val),
            "validation": "the training images: there is no val split" if self.val.splitless else "val split",
            **self.train.facts(),
        }


def open_splits(data: str) -> Splits:
    """Both splits of the data set `data`, a name or a path.

    Raises:
        FileNotFoundError: if there is no such data set, or a split is missing.
        ValueError: if it holds no images.
    """
    root = locate(data)
    return Splits(ImageFolder(root, "train"), ImageFolder(root, "val"))


def micro_batch(config: Finetune | Linear) -> int:
    """Images that go through the model of one process at a time.

    Raises:
        ValueError: if the batch cannot be shared evenly.
    """
    parts = config.compute.accumulate * rank_and_world()[1]
    if config.batch % parts:
        raise ValueError(
            f"batch={config.batch} cannot be shared by {rank_and_world()[1]} processes with "
            f"compute.accumulate={config.compute.accumulate}; take a multiple of {parts}"
        )
    return config.batch // parts


def resized_side(side: int, eval_crop: float | None) -> int:
    """To what the short side of an image is resized before its middle `side` pixels are evaluated: 224 gives 256."""
    if eval_crop is None:
        eval_crop = 224 / 256 if side <= 224 else 1.0
    return int(side / eval_crop)


class CentreCrops(Dataset[Item]):
    """The middle of each image, for evaluation: resized so that `eval_crop` of its short side is `side` pixels."""

    def __init__(self, folder: ImageFolder, side: int, eval_crop: float | None = None) -> None:
        self.folder, self.side, self.short = folder, side, resized_side(side, eval_crop)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Item:
        image, label = self.folder[index]
        return centre_crop(image, self.side, self.short), label


class TimmCrops(Dataset[Item]):
    """Random crops for fine-tuning as timm makes them from PIL images (bicubic), without its last step, normalising.

    Args:
        folder: the images.
        side: of a crop in pixels.
        smallest: least share of an image's area in a crop.
        flip: mirror half of the crops.
        randaugment: timm's text form of RandAugment, such as "rand-m9-mstd0.5-inc1"; None for none.
    """

    def __init__(self, folder: ImageFolder, side: int, *, smallest: float, flip: bool, randaugment: str | None) -> None:
        self.folder = folder
        self.transform = create_transform(
            side,
            is_training=True,
            scale=(smallest, 1.0),
            hflip=0.5 if flip else 0.0,
            color_jitter=None,  # type: ignore[arg-type]  # timm takes None for none; its annotation forgot
            auto_augment=randaugment,
            interpolation="bicubic",
            normalize=False,
        )

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Item:
        from PIL import Image

        image, label = self.folder[index]
        return self.transform(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())), label


class OneDrawCrops(Dataset[Item]):
    """Random crops for the linear probe: see `draw_once`."""

    def __init__(self, folder: ImageFolder, side: int, *, smallest: float, flip: bool) -> None:
        self.folder, self.side, self.smallest, self.flip = folder, side, smallest, flip

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Item:
        image, label = self.folder[index]
        height, width = image.shape[-2:]
        return cut(image, draw_once(height, width, self.smallest, self.flip), self.side), label


def draw_once(height: int, width: int, smallest: float, flip: bool) -> Box:
    """A random crop drawn once (BYOL's TensorFlow code, and MAE's linear probe).

    A uniform share of the area in (`smallest`, 1) and a log-uniform aspect in (3/4, 4/3) give width and height; what
    exceeds the image is clipped, where torchvision would draw again.
    """
    area = height * width * random.uniform(smallest, 1.0)
    aspect = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    w = min(max(round(math.sqrt(area * aspect)), 1), width)
    h = min(max(round(math.sqrt(area / aspect)), 1), height)
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    return Box(top, left, h, w, flip and random.random() < 0.5)


class BatchAugmentation:
    """Normalising, random erasing and mixing of a batch, on its device.

    Erasing fills one rectangle of an image with noise of unit variance. Mixing pairs image i with image B - 1 - i and
    draws one share for the whole batch (timm's mode "batch"); targets then hold label smoothing already.
    """

    def __init__(
        self, config: Finetune, classes: int, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        self.mean, self.std = mean, std
        self.erase = RandomErasing(config.erasing, mode="pixel", device=str(device)) if config.erasing else None
        self.mix = _mixup(config, classes) if config.mixes else None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Floats (B, 3, S, S) from uint8, and targets: shares (B, C) when mixing, else the labels (B,)."""
        floats = normalise(images, self.mean, self.std)
        if self.erase is not None:
            floats = self.erase(floats)
        return (floats, labels) if self.mix is None else self.mix(floats, labels)


def _mixup(config: Finetune, classes: int) -> Mixup:
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_probability,
        switch_prob=config.switch_probability,
        mode="batch",
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )


def finetune_crops(config: Finetune, folder: ImageFolder) -> MapStyle:
    """The training view of fine-tuning."""
    return TimmCrops(
        folder, config.image, smallest=config.smallest_crop, flip=config.flip, randaugment=config.randaugment
    )
