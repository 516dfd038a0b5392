"""Evaluate a method on validation images: a comparable loss, and a picture.

The picture has a column for each image: the image, the part shown to the encoder, the reconstruction if the method
predicts pixels, and the weights of patches if there are any. All hidden patches are reconstructed, even if training
predicts only some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.process import part_of_rank, summed
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.pixels import pixels
from mimbench.pretrain.monitor import Squares
from mimbench.pretrain.step import Step

HIDDEN = 205  # grey level of hidden patches
CELL, GAP, MARGIN = 1.25, 0.06, 0.35  # of the picture, in inches

# M images, N patches, Q hidden patches, P values of a patch

Rows = dict[str, Tensor]  # rows of a picture from the top: name -> uint8 images (M, 3, H, W)


def spread(folder: ImageFolder, number: int, side: int) -> Tensor:
    """Return `number` images (or all), evenly spread over the classes: central squares, uint8 (M, 3, side, side)."""
    squares = Squares(folder, number, side)
    return torch.stack([squares[place][0] for place in range(len(squares))])


def fixed_noise(images: Tensor, patches: int, seed: int) -> Tensor:
    """Return noise (M, N) for `images` that depends only on the seed, so that losses can be compared."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(images), patches, generator=generator).to(images.device)


@torch.no_grad()
def validation_loss(step: Step, images: Tensor, seed: int, batch: int) -> float:
    """Return the mean loss on uint8 `images` (M, 3, H, W) with fixed masks, always those of the first epoch.

    Each process computes the losses of its share of the images; all of them must call this.
    """
    noise_MN = fixed_noise(images, step.grid[0] * step.grid[1], seed)
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    share = part_of_rank(len(images))
    for first in range(share.start, share.stop, batch):
        mine = slice(first, min(first + batch, share.stop))
        part, noise = images[mine], noise_MN[mine]
        normalised = step.normalised(part)
        total += step.method(normalised, *step.choose(normalised, noise, None, 0.0)).double() * len(part)
    return float(summed(total) / len(images))


@torch.no_grad()
def picture_rows(step: Step, images: Tensor, noise_MN: Tensor, weights_MN: Tensor | None = None) -> Rows:
    """Return a picture's rows for uint8 `images` (M, 3, H, W): "original", "shown", "rebuilt" and "weights" if any."""
    inputs, patch = step.normalised(images), step.method.shape.patch
    masked, context = step.choose(inputs, noise_MN, weights_MN, step.epoch)
    hidden_MQ = torch.cat([masked.predicted, masked.dropped], dim=1).sort(dim=1).values
    grey_MQP = torch.full((*hidden_MQ.shape, 3 * patch**2), HIDDEN, dtype=torch.uint8, device=images.device)
    rows = {"original": images, "shown": _pasted(images, grey_MQP, hidden_MQ, patch)}
    rebuilt_MQP = step.method.rebuild(inputs, Masked(masked.shown, hidden_MQ, hidden_MQ[:, :0]))
    if rebuilt_MQP is not None:
        colours_MQP = _to_uint8(rebuilt_MQP.unflatten(2, (-1, 3))).flatten(2)
        rows["rebuilt"] = _pasted(images, colours_MQP, hidden_MQ, patch)
    if weights_MN is None and context is not None:
        weights_MN = context.importance
    if weights_MN is not None:
        rows["weights"] = heat(weights_MN.unflatten(1, step.grid), patch)
    return rows


def heat(weights_Mhw: Tensor, patch: int) -> Tensor:
    """Return weights of patches as colours, brightest for each image's largest: uint8 (M, 3, h * patch, w * patch)."""
    from matplotlib import colormaps

    weights_Mhw = weights_Mhw.detach().float().cpu()
    share_Mhw = weights_Mhw / weights_Mhw.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    colours_Mhw3 = torch.from_numpy(colormaps["inferno"](share_Mhw.numpy(), bytes=True)[..., :3].copy())
    return colours_Mhw3.permute(0, 3, 1, 2).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def _to_uint8(colours: Tensor) -> Tensor:
    """Return normalised colours (..., 3) as levels 0..255."""
    mean, std = colours.new_tensor(IMAGENET_MEAN), colours.new_tensor(IMAGENET_STD)
    return ((colours * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _pasted(images: Tensor, patches_MQP: Tensor, index_MQ: Tensor, patch: int) -> Tensor:
    """Return `images` with the patches at `index_MQ` replaced."""
    every_MN = torch.arange(images.shape[2] * images.shape[3] // patch**2, device=images.device).expand(len(images), -1)
    all_MNP = pixels(images, every_MN, patch).scatter(1, index_MQ[..., None].expand_as(patches_MQP), patches_MQP)
    rows = images.shape[2] // patch
    grid = all_MNP.unflatten(2, (patch, patch, 3)).unflatten(1, (rows, -1))  # (M, h, w, p, p, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(images.shape)


def save_picture(path: Path, rows: Mapping[str, Tensor], caption: str) -> None:
    """Write `rows` of images as a PNG: a column per image, the rows' names on the left, `caption` at the bottom.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    width, height = columns * CELL + MARGIN, len(rows) * CELL + MARGIN
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    for row, (name, images) in enumerate(rows.items()):
        bottom = (len(rows) - 1 - row) * CELL + MARGIN
        figure.text(MARGIN / 2 / width, (bottom + CELL / 2) / height, name, rotation=90, ha="center", va="center")
        for column, image in enumerate(images):
            left = column * CELL + MARGIN
            axis = figure.add_axes((left / width, bottom / height, (CELL - GAP) / width, (CELL - GAP) / height))
            axis.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_axis_off()
    figure.text(MARGIN / width, MARGIN / 2 / height, caption, va="center", fontsize=9, color="#555555")
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
