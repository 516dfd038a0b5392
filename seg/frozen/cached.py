"""Features of whole training images, computed once: `views=cached` of a linear head.

    cached = cached_features(config, split, encoder, mean, std)
    features, labels = cached[3]                  # (D, h, w) and uint8 (S, S)

Images and label maps are squeezed to a square by OpenCV, bilinear and nearest, as everywhere in this package. A head
trained on these sees no crops, flips or distortion, so its number is not that of the papers' augmented protocols; it
costs one pass of the encoder over the images in place of one an epoch.

Features stay in this process's memory, in single precision. Under torchrun every process computes all of them.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.engine.data.batches import evaluation_loader, move
from mimbench.engine.run.bar import track
from mimbench.seg.config import LinearSegmentationConfig
from mimbench.seg.data.batches import to_tensor
from mimbench.seg.data.pixels import resize_image, resize_labels
from mimbench.seg.data.split import LabelledSplit
from mimbench.seg.model.linear import FrozenEncoder
from mimbench.seg.model.segmenter import RGB, prepared

IMAGES = 64  # encoded at a time


class Squeezed(Dataset[tuple[Tensor, Tensor]]):
    """Whole images of a split and their label maps as squares: uint8 (3, S, S), red first, and uint8 (S, S)."""

    def __init__(self, split: LabelledSplit, side: int) -> None:
        self.split, self.size = split, (side, side)

    def __len__(self) -> int:
        return len(self.split)

    def image_name(self, index: int) -> str:
        """Return the file of item `index`."""
        return self.split.image_name(index)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.split.pair(index)
        return to_tensor(resize_image(image, self.size)), torch.from_numpy(resize_labels(labels, self.size))


class CachedFeatures(Dataset[tuple[Tensor, Tensor]]):
    """Features and labels of the images of a split: float32 (D, h, w) and uint8 (S, S) each."""

    def __init__(self, features_NDhw: Tensor, labels_NSS: Tensor) -> None:
        self.features, self.labels = features_NDhw, labels_NSS

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.features[index], self.labels[index]


@torch.no_grad()
def cached_features(
    config: LinearSegmentationConfig, split: LabelledSplit, encoder: FrozenEncoder, mean: RGB, std: RGB
) -> CachedFeatures:
    """Return the features and labels of all images of `split`, at `config.image` pixels a side.

    Raises:
        ValueError: if `config.image` is no multiple of the encoder's patch, the features would not fit into the
            machine's free memory, or an image or label map cannot be used.
    """
    side, patch = config.image, encoder.patch
    if side % patch:
        raise ValueError(f"image={side} must be a multiple of the encoder's patch={patch} with views=cached")
    require_room(len(split), encoder.width * (side // patch) ** 2)
    features = torch.empty(len(split), encoder.width, side // patch, side // patch)
    labels = torch.empty(len(split), side, side, dtype=torch.uint8)
    loader = evaluation_loader(Squeezed(split, side), IMAGES, config.compute.workers)
    start = 0
    for images, maps in track(loader, "encoding train images", len(loader)):
        place = slice(start, start := start + len(images))
        sizes = [(side, side)] * len(images)
        features[place] = encoder(prepared(move(images, encoder.device), sizes, mean, std)).cpu()
        labels[place] = maps
    return CachedFeatures(features, labels)


def require_room(images: int, numbers: int) -> None:
    """Refuse features that do not fit into free memory: `numbers` in single precision for each image.

    Raises:
        ValueError: with both sizes and what to do.
    """
    needed, free = 4 * images * numbers, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise ValueError(
            f"views=cached keeps the features of {images} images, {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
            "of memory are free; take views=augmented, a smaller image or fewer layers"
        )
