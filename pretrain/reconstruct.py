"""What a pretrained model makes of hidden patches, as a loss on validation images and as a picture.

The picture has a column for each image: the image, what the encoder was shown of it, and the reconstruction. All
hidden patches are decoded, also when training predicts only some of them. A model that predicts standardised pixels
leaves each patch's mean and contrast open: they are taken from the image, as the papers' figures do.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.atomic import write_with
from engine.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, centre_crop, normalise
from pretrain.crossmae import CrossMAE, moments, pixels
from pretrain.masking import mask_patches

HIDDEN = 205  # grey level of what the encoder was not shown
CELL, GAP, MARGIN = 1.25, 0.06, 0.35  # of the picture, in inches

# M images, N patches, Q hidden patches, P values of a patch


class Pictures(NamedTuple):
    """uint8 images (M, 3, H, W)."""

    original: Tensor
    masked: Tensor
    reconstruction: Tensor


def spread(folder: ImageFolder, number: int, side: int) -> Tensor:
    """`number` images (or all) evenly spread over the folder's classes: central squares, uint8 (M, 3, side, side)."""
    number = min(number, len(folder))
    chosen = [(2 * place + 1) * len(folder) // (2 * number) for place in range(number)]
    return torch.stack([centre_crop(folder[index][0], side, side) for index in chosen])


def fixed_noise(images: Tensor, model: CrossMAE, seed: int) -> Tensor:
    """Noise (M, N) for `images` that depends on the seed alone, so that losses can be compared."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(images), model.shape.grid**2, generator=generator).to(images.device)


@torch.no_grad()
def validation_loss(model: CrossMAE, images: Tensor, seed: int, batch: int) -> float:
    """The mean loss on uint8 `images` (M, 3, H, W) with fixed masks."""
    noise_MN = fixed_noise(images, model, seed)
    parts = zip(images.split(batch), noise_MN.split(batch), strict=True)
    total = sum(model(normalise(part), noise).double() * len(part) for part, noise in parts)
    return float(total / len(images))


@torch.no_grad()
def reconstruct(model: CrossMAE, images: Tensor, noise_MN: Tensor) -> Pictures:
    """Decode every hidden patch of uint8 `images` (M, 3, H, W)."""
    inputs = normalise(images)
    shown, hidden = mask_patches(noise_MN, model.config.mask, model.config.mask)
    patches_MQP = model.predict(inputs, shown, hidden).float()
    if model.config.norm_pix:
        mean, deviation = moments(pixels(inputs, hidden, model.patch))
        patches_MQP = patches_MQP * deviation + mean
    grey_MQP = torch.full_like(patches_MQP, HIDDEN).to(torch.uint8)
    colours_MQP = _to_uint8(patches_MQP.unflatten(2, (-1, 3))).flatten(2)
    return Pictures(
        images, _pasted(images, grey_MQP, hidden, model.patch), _pasted(images, colours_MQP, hidden, model.patch)
    )


def _to_uint8(colours: Tensor) -> Tensor:
    """Normalised colours (..., 3) as grey levels 0..255."""
    mean, std = colours.new_tensor(IMAGENET_MEAN), colours.new_tensor(IMAGENET_STD)
    return ((colours * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _pasted(images: Tensor, patches_MQP: Tensor, index_MQ: Tensor, patch: int) -> Tensor:
    """`images` with patches at `index_MQ` replaced."""
    every_MN = torch.arange(images.shape[2] * images.shape[3] // patch**2, device=images.device).expand(len(images), -1)
    all_MNP = pixels(images, every_MN, patch).scatter(1, index_MQ[..., None].expand_as(patches_MQP), patches_MQP)
    rows = images.shape[2] // patch
    grid = all_MNP.unflatten(2, (patch, patch, 3)).unflatten(1, (rows, -1))  # (M, h, w, p, p, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(images.shape)


def save_picture(path: Path, pictures: Pictures, caption: str) -> None:
    """Write `pictures` as a PNG: a row for each of its three parts, a column for each image, `caption` below.

    Raises:
        OSError: if it cannot be written.
    """
    from matplotlib.figure import Figure

    columns = len(pictures.original)
    width, height = columns * CELL + MARGIN, 3 * CELL + MARGIN
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    for row, (name, images) in enumerate(zip(("original", "shown", "rebuilt"), pictures, strict=True)):
        bottom = (2 - row) * CELL + MARGIN
        figure.text(MARGIN / 2 / width, (bottom + CELL / 2) / height, name, rotation=90, ha="center", va="center")
        for column, image in enumerate(images):
            left = column * CELL + MARGIN
            axis = figure.add_axes((left / width, bottom / height, (CELL - GAP) / width, (CELL - GAP) / height))
            axis.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_axis_off()
    figure.text(MARGIN / width, MARGIN / 2 / height, caption, va="center", fontsize=9, color="#555555")
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
