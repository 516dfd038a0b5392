"""Images for classification: crops for training and evaluation, and augmentation of whole batches.

Items are uint8 (3, S, S) and a label; they become floats on the device (`engine.data.images.normalise`). Three views:

    CentreCrops      evaluation: short side to 256, middle 224 (above 224 px the whole short side)
    TimmCrops        fine-tuning: random crop, flip and RandAugment by timm
    ProbeCrops       linear probe: the crop of BYOL and MAE, drawn once and clipped to the image; or torchvision's

`BatchAugmentation` erases and mixes on the device, also with timm. All random numbers come from the generators seeded
by `engine.data.batches.SeededDataset` (items) and `engine.training.step` (batches).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.cls.config import FastLinear, Finetune, Linear, Pixels
from mimbench.cls.data.augment import FinetuneTransform
from mimbench.cls.draws import StepDraws
from mimbench.engine.data.batches import MapStyle
from mimbench.engine.data.datasets import locate, unfit
from mimbench.engine.data.images import Box, Decoder, ImageFolder, centre_crop, cut, draw_box, normalise
from mimbench.engine.data.shared_images import COPY, HONEST, validation_fact
from mimbench.engine.run.process import rank_and_world

log = logging.getLogger(__name__)

# B image of a batch, C class, H x W size of an image, S side of a crop

Item = tuple[Tensor, int]
RATIO = (3 / 4, 4 / 3)  # width over height of a random crop
NAMED = 3  # classes in a message
MANY = 200_000  # training images: beyond these, their names are not compared with those of the validation images
NO_SPLIT = "the training images: there is no val split"


@dataclass(frozen=True)
class Splits:
    """The two splits of a data set; labels are indices into the training split's classes."""

    train: ImageFolder
    val: ImageFolder
    validation: str = HONEST  # which validation images are training images

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.train.classes)

    def facts(self) -> dict[str, object]:
        """Return the facts of the data that change the numbers."""
        return {
            "classes": self.classes,
            "train_images": len(self.train),
            "val_images": len(self.val),
            "validation": self.validation,
            **self.train.facts(),
        }


def open_splits(data: str, decoder: Decoder = "torchvision", subset: str | None = None) -> Splits:
    """Open both splits of the data set `data` (a name or a path); the file `subset` selects training images.

    Raises:
        FileNotFoundError: if the data set, the subset file or a split does not exist.
        ValueError: if it has no images, `subset` names images not in it, or the splits have different classes.
    """
    root = locate(data)
    train, val = ImageFolder(root, "train", decoder=decoder, subset=subset), ImageFolder(root, "val", decoder=decoder)
    if train.classes != val.classes:
        raise unfit(
            val.paths.root,
            _different(train.classes, val.classes),
            "its labels would be wrong; both splits need the same classes",
        )
    if empty := (torch.bincount(train.labels, minlength=len(train.classes)) == 0).nonzero().flatten().tolist():
        named = ", ".join(train.classes[number] for number in empty[:NAMED])
        log.warning("%s: %d of %d classes have no training images: %s", root, len(empty), len(train.classes), named)
    validation = NO_SPLIT if val.splitless else shared_images(train, val)
    if validation not in (HONEST, NO_SPLIT):
        what = "the" if validation == COPY else validation.removesuffix(" are training images")
        log.warning(
            "%s: %s validation images are training images, so accuracy means little; use other images", root, what
        )
    return Splits(train, val, validation)


def _different(train: list[str], val: list[str]) -> str:
    first = next((pair for pair in zip(train, val, strict=False) if pair[0] != pair[1]), None)
    counts = f"has {len(val)} classes, but the training split has {len(train)}"
    return counts if first is None else f"{counts}; the first difference is {first[1]} instead of {first[0]}"


def shared_images(train: ImageFolder, val: ImageFolder) -> str:
    """Return the description of the validation images for `result.json`; not looked for in large data sets."""

    def same(other: int, place: int) -> bool:
        return train.paths.encoded(other) == val.paths.encoded(place)

    if len(train) > MANY:
        return HONEST
    names = [[split.paths.name(at) for at in range(len(split))] for split in (train, val)]
    return validation_fact(names[0], names[1], same)


def micro_batch(config: Finetune | Linear | FastLinear) -> int:
    """Return the number of images per micro-batch of one process.

    Raises:
        ValueError: if the batch cannot be divided evenly, or gives the batch norm of a probe a single image.
    """
    parts = config.compute.accumulate * rank_and_world()[1]
    if config.batch % parts:
        raise ValueError(
            f"batch={config.batch} cannot be divided among {rank_and_world()[1]} processes with "
            f"compute.accumulate={config.compute.accumulate}; use a multiple of {parts}"
        )
    if config.batch == parts and not isinstance(config, Finetune):
        raise ValueError(
            f"batch={config.batch} in {parts} micro-batches is a single image for the probe's batch norm, which needs "
            f"at least 2; use batch={2 * parts} or more, or a smaller compute.accumulate"
        )
    return config.batch // parts


def resized_side(side: int, eval_crop: float | None) -> int:
    """Return the length to which an image's short side is resized before the centre crop: 256 for `side` 224."""
    if eval_crop is None:
        eval_crop = 224 / 256 if side <= 224 else 1.0
    return int(side / eval_crop)


class Crops(Dataset[Item]):
    """One view of each image of a folder."""

    folder: ImageFolder

    def __len__(self) -> int:
        return len(self.folder)

    def image_name(self, index: int) -> str:
        """Return the file of item `index`."""
        return self.folder.image_name(index)


class CentreCrops(Crops):
    """Centre crops for evaluation; images are resized so that `eval_crop` of the short side is `side` pixels."""

    def __init__(self, folder: ImageFolder, side: int, eval_crop: float | None = None) -> None:
        self.folder, self.side, self.short = folder, side, resized_side(side, eval_crop)

    def __getitem__(self, index: int) -> Item:
        image, label = self.folder[index]
        return centre_crop(image, self.side, self.short, self.folder.decoder), label


class TimmCrops(Crops):
    """timm's random crops for fine-tuning; the options are those of `FinetuneTransform`."""

    def __init__(
        self,
        folder: ImageFolder,
        side: int,
        *,
        smallest: float,
        flip: bool,
        randaugment: str | None,
        pixels: Pixels = "pil",
    ) -> None:
        self.folder = folder
        self.transform = FinetuneTransform(side, smallest=smallest, flip=flip, randaugment=randaugment, pixels=pixels)

    def __getitem__(self, index: int) -> Item:
        image, label = self.folder[index]
        return self.transform(image), label


class ProbeCrops(Crops):
    """Random crops for the linear probe: drawn once (`draw_once`), or until one fits, as torchvision does (`again`)."""

    def __init__(self, folder: ImageFolder, side: int, *, smallest: float, flip: bool, again: bool = False) -> None:
        self.folder, self.side, self.smallest, self.flip, self.again = folder, side, smallest, flip, again

    def __getitem__(self, index: int) -> Item:
        image, label = self.folder[index]
        height, width = image.shape[-2:]
        if self.again:
            box = draw_box(height, width, (self.smallest, 1.0), RATIO, self.flip)
        else:
            box = draw_once(height, width, self.smallest, self.flip)
        return cut(image, box, self.side, self.folder.decoder), label


def draw_once(height: int, width: int, smallest: float, flip: bool) -> Box:
    """Return a random crop that is drawn only once (BYOL's TensorFlow code, and MAE's linear probe).

    Width and height follow from a uniform share of the area in (`smallest`, 1) and a log-uniform aspect ratio in
    (3/4, 4/3). A crop larger than the image is clipped; torchvision would draw again.
    """
    area = height * width * random.uniform(smallest, 1.0)
    aspect = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    w = min(max(round(math.sqrt(area * aspect)), 1), width)
    h = min(max(round(math.sqrt(area / aspect)), 1), height)
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    return Box(top, left, h, w, flip and random.random() < 0.5)


class BatchAugmentation:
    """Normalisation, random erasing, mixup and CutMix of a batch, on its device.

    Erasing fills one rectangle of an image with noise of unit variance. Mixing pairs image i with image B - 1 - i and
    draws one ratio for the whole batch (timm's mode "batch"); its targets include label smoothing.
    """

    def __init__(
        self, config: Finetune, classes: int, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        self.mean, self.std = mean, std
        self.erase = RandomErasing(config.erasing, mode="pixel", device=str(device)) if config.erasing else None
        self.mix = _mixup(config, classes) if config.mixes else None

    def __call__(self, images: Tensor, labels: Tensor, draws: StepDraws | None = None) -> tuple[Tensor, Tensor]:
        """Return floats (B, 3, S, S) from uint8, and targets: class probabilities (B, C) if mixing, else labels (B,).

        Random numbers are drawn per image and optimiser step if `draws` is given, else from the global generators.
        """
        floats = normalise(images, self.mean, self.std)
        if self.erase is not None and draws is None:
            floats = self.erase(floats)
        elif self.erase is not None and draws is not None:
            for image, seed in zip(floats, draws.image_seeds(), strict=True):
                _erase(self.erase, image, seed)
        if self.mix is not None and draws is not None:
            np.random.seed(draws.mixing_seed() & 0xFFFFFFFF)
        return (floats, labels) if self.mix is None else self.mix(floats, labels)


def _erase(erase: RandomErasing, image: Tensor, seed: int) -> None:
    """Erase a rectangle of `image` (3, S, S) in place, drawn from `seed`; most images need no device generator."""
    random.seed(seed)
    if random.random() <= erase.probability:  # timm's first draw
        random.seed(seed)
        torch.manual_seed(seed)
        erase(image)


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
    """Return the training images of fine-tuning; those that Pillow decodes, Pillow also resizes."""
    return TimmCrops(
        folder,
        config.image,
        smallest=config.smallest_crop,
        flip=config.flip,
        randaugment=config.randaugment,
        pixels="pil" if folder.decoder == "pil" else config.pixels,
    )


def probe_crops(config: Linear, folder: ImageFolder) -> MapStyle:
    """Return the training images of a linear probe."""
    again = config.crop == "torchvision"
    return ProbeCrops(folder, config.image, smallest=config.smallest_crop, flip=config.flip, again=again)
