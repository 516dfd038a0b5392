"""Training and validation samples of a split, and batches in the form that `seg.model.segmenter` documents.

Images stay uint8; the model normalises them on the device. A crop smaller than the square is padded at the bottom and
the right: labels with 255, images with the mean colour, which is zero after normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.seg.config import Augment, Inference
from mimbench.seg.data.augment import IGNORED, augmented
from mimbench.seg.data.augment_dinov3 import augmented_as_dinov3, resize_antialiased, short_side_to
from mimbench.seg.data.pixels import Image, Labels, Size, red_first, rescaled_size, resize_image
from mimbench.seg.data.split import LabelledSplit


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops: (uint8 image (3, h, w), red first; uint8 labels (h, w)), h and w at most `side`.

    Random numbers come from NumPy's generator, so each item must be seeded (`Batches` does it).
    """

    def __init__(self, split: LabelledSplit, config: Augment, side: int) -> None:
        self.split, self.config, self.side = split, config, side

    def __len__(self) -> int:
        return len(self.split)

    def image_name(self, index: int) -> str:
        """Return the file of item `index`."""
        return self.split.image_name(index)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        change = augmented_as_dinov3 if self.config.transforms == "dinov3" else augmented
        image, labels = change(*self.split.pair(index), self.config, self.side)
        return to_tensor(image), torch.from_numpy(np.ascontiguousarray(labels))


class View(NamedTuple):
    """An image at one size, and its weight in the average."""

    image: Tensor  # uint8 (3, h, w)
    weight: int


class Looked(NamedTuple):
    """A validation image: its views and its labels."""

    place: int  # index in the split
    views: list[View]
    labels: Tensor  # uint8 (H, W), at the original size


class ValidationViews(Dataset[Looked]):
    """Images of a split (all, or those at `images`), resized for inference."""

    def __init__(self, split: LabelledSplit, config: Inference, side: int, images: Sequence[int] | None = None) -> None:
        self.split, self.config, self.side = split, config, side
        self.images = range(len(split)) if images is None else images

    def __len__(self) -> int:
        return len(self.images)

    def image_name(self, number: int) -> str:
        """Return the file of item `number`."""
        return self.split.image_name(self.images[number])

    def __getitem__(self, number: int) -> Looked:
        index = self.images[number]
        image, labels = self.split.pair(index)
        return Looked(index, views_of(image, self.config, self.side), torch.from_numpy(labels))


def views_of(image: Image, config: Inference, side: int) -> list[View]:
    """Return an image at each size of `config.scales`; equal sizes become one view with more weight."""
    sizes = [view_size((image.shape[0], image.shape[1]), scale, config, side) for scale in config.scales]
    resize = resize_antialiased if config.resizing == "pillow" else resize_image
    return [View(to_tensor(resize(image, size)), sizes.count(size)) for size in dict.fromkeys(sizes)]


def view_size(size: Size, scale: float, config: Inference, side: int) -> Size:
    """Return the size of an image at a scale; see `Inference.scaling`."""
    short = side if config.short is None else config.short
    if config.resizing == "pillow":
        return short_side_to(size, int(short * scale))
    if len(config.scales) > 1 and config.scaling == "beit":
        at_least = max(int(short * scale), side)
        factor = at_least / min(size)
        return rescaled_size(size, max(size) * factor, at_least)
    return rescaled_size(size, int(config.long * scale), int(short * scale))


def to_tensor(image: Image) -> Tensor:
    """Return an image (H, W, 3), blue first, as a tensor (3, H, W), red first, in channels-last memory."""
    return torch.from_numpy(red_first(image)).permute(2, 0, 1)


def training_batch(samples: Sequence[tuple[Tensor, Tensor]], side: int) -> dict[str, Any]:
    """Return the batch {"images", "sizes", "labels"} for `seg.model.segmenter`."""
    images = torch.zeros(len(samples), side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.full((len(samples), side, side), IGNORED, dtype=torch.uint8)
    sizes = []
    for place, (image, label) in enumerate(samples):
        height, width = label.shape
        images[place, :, :height, :width] = image
        labels[place, :height, :width] = label
        sizes.append((height, width))
    return {"images": images, "sizes": sizes, "labels": labels}


def collate(side: int) -> partial[dict[str, Any]]:
    """Return `training_batch` for crops of `side`, in a form that can be sent to loading processes."""
    return partial(training_batch, side=side)


__all__ = ["IGNORED", "Labels", "Looked", "TrainingCrops", "ValidationViews", "View", "collate", "training_batch"]
