"""The patches of a split as CAPI's protocols see them: frozen features and raw labels, at a square's size.

train = patches_of(config, split, frozen)     # features (N, D), labels (N, P)
parts = divided(config, train, val, images)   # standardised; a tenth of the training images apart
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.engine.data.batches import evaluation_loader, move
from mimbench.engine.data.images import normalise
from mimbench.engine.run.bar import track
from mimbench.seg.config import PatchConfig
from mimbench.seg.data.split import LabelledSplit
from mimbench.seg.frozen.encoder import Frozen


class Squashed(Dataset[tuple[Tensor, Tensor]]):
    """Images and raw label maps as squares: (uint8 (3, S, S), uint8 (S, S)), by Pillow, bicubic and nearest."""

    def __init__(self, split: LabelledSplit, side: int, ignore: Sequence[int]) -> None:
        self.split, self.side, self.ignore = split, side, ignore

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        square = (self.side, self.side)
        image, raw = self.split.raw_pair(index, self.ignore)
        pixels = Image.fromarray(np.ascontiguousarray(image[..., ::-1])).resize(square, Image.Resampling.BICUBIC)
        labels = Image.fromarray(raw).resize(square, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), torch.from_numpy(np.array(labels))


class Patches(NamedTuple):
    """The patches of some images, one after another."""

    features: Tensor  # (N, D)
    labels: Tensor  # uint8 (N, P), raw ids
    each: int  # patches of one image

    def of(self, images: Tensor) -> Patches:
        """Return the patches of the images at indices (I,)."""
        rows = (images[:, None] * self.each + torch.arange(self.each)).flatten().to(self.features.device)
        return Patches(self.features[rows], self.labels[rows], self.each)


class Divided(NamedTuple):
    """Standardised patches: of the training images to learn from, of those held out, of all of them, and of val."""

    rest: Patches
    held_out: Patches
    train: Patches
    val: Patches


def divided(config: PatchConfig, train: Patches, val: Patches, images: int) -> Divided:
    """Hold out `config.held_out` of the `images` training images, and standardise all by the statistics of the others.

    Raises:
        ValueError: if there are fewer than two training images.
    """
    if images < 2:
        raise ValueError("CAPI's protocols need at least two training images: some are held out")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(config.seed))
    held = min(max(round(images * config.held_out), 1), images - 1)
    mean_D, deviation_D = statistics(train.of(order[held:].sort().values).features)
    train, val = (part._replace(features=(part.features - mean_D) / deviation_D) for part in (train, val))
    return Divided(train.of(order[held:].sort().values), train.of(order[:held].sort().values), train, val)


def statistics(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation of each feature; the deviation of a constant feature is set to one."""
    mean_D, deviation_D = features_ND.mean(0), features_ND.std(0, unbiased=False)
    return mean_D, deviation_D.where(deviation_D > 0, torch.ones_like(deviation_D))


@torch.no_grad()
def patches_of(config: PatchConfig, split: LabelledSplit, frozen: Frozen) -> Patches:
    """Compute features and labels of all patches of a split, on the encoder's device.

    Raises:
        ValueError: if the image's side is no multiple of the patch, or an image or label map cannot be used.
    """
    encoder = frozen.encoder
    if config.image % encoder.patch:
        raise ValueError(f"image={config.image} must be a multiple of the encoder's patch={encoder.patch}")
    features, labels, grid, patch = [], [], config.image // encoder.patch, encoder.patch
    loader = evaluation_loader(
        Squashed(split, config.image, ignored_ids(config, split)), config.eval_batch, config.compute.workers
    )
    for images, maps in track(loader, f"encoding {split.split} images", len(loader)):
        encoded = encoder(normalise(move(images, encoder.device), frozen.mean, frozen.std))
        features.append(encoded.flatten(2).mT.flatten(0, 1))
        cells = maps.view(-1, grid, patch, grid, patch).transpose(2, 3).reshape(-1, patch * patch)
        labels.append(move(cells, encoder.device))
    return Patches(torch.cat(features), torch.cat(labels), grid * grid)


def ignored_ids(config: PatchConfig, split: LabelledSplit) -> tuple[int, ...]:
    """Return the raw ids that are neither learned nor evaluated: the config's, or those of the data set."""
    return config.ignore or ((0, 255) if split.layout.zero_is_ignored else (255,))
