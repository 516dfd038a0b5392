"""Patches of images as prediction targets: extract, standardise and compare them.

Targets are extracted before they are standardised, so nothing is computed for patches that are not predicted.

Shapes: B image, Q patch predicted, P value of a patch in the order row, column, colour; p side of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.vit import patch_view, pick_patches


def pixels(images: Tensor, index_BQ: Tensor, patch: int) -> Tensor:
    """Return the values of the patches at `index_BQ` as targets: (B, Q, P), P in the order row, column, colour."""
    return pick_patches(patch_view(images, patch).permute(0, 1, 2, 4, 5, 3), index_BQ).flatten(2)


def moments(patches_BQP: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, Q, 1) of each patch: unbiased variance, plus 1e-6."""
    variance, mean = torch.var_mean(patches_BQP, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def standardised(patches_BQP: Tensor) -> Tensor:
    """Return patches standardised to mean 0 and variance 1 each."""
    mean, deviation = moments(patches_BQP)
    return (patches_BQP - mean) / deviation


def pixel_loss(prediction_BQP: Tensor, images: Tensor, index_BQ: Tensor, patch: int, norm_pix: bool) -> Tensor:
    """Return the mean squared error over the patches at `index_BQ`; `norm_pix` standardises the targets first."""
    target_BQP = pixels(images, index_BQ, patch)
    return F.mse_loss(prediction_BQP, standardised(target_BQP) if norm_pix else target_BQP)


def painted(prediction_BQP: Tensor, images: Tensor, index_BQ: Tensor, patch: int, norm_pix: bool) -> Tensor:
    """Return a prediction in the units of `images`.

    A model of standardised pixels does not predict each patch's mean and contrast: they are taken from the image, as in
    the papers' figures.
    """
    if not norm_pix:
        return prediction_BQP
    mean, deviation = moments(pixels(images, index_BQ, patch))
    return prediction_BQP * deviation + mean
