"""Which patches of each image are shown and which are predicted.

All counts are fixed by the config, so that no shape depends on data: nothing waits for the device, and a step can be
compiled. Randomness comes in as noise; the same noise gives the same patches in any implementation that sorts it.

Shapes: B image, N patch (row-major), V patch shown, Q patch predicted.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Masked(NamedTuple):
    """Row-major indices of patches, int64."""

    shown: Tensor  # (B, V), in the order of the noise: the encoder does not care
    predicted: Tensor  # (B, Q), ascending


def counts(patches: int, mask: float, predict: float) -> tuple[int, int, int]:
    """How many of `patches` are shown, hidden without being predicted, and predicted; rounded as CrossMAE does it.

    Of 196, mask .75 and predict .25 give 49, 98, 49; mask .65 and predict .65 give 68, 0, 128.

    Raises:
        ValueError: if none would be shown.
    """
    shown, skipped = int(patches * (1 - mask)), int(patches * (mask - predict))
    if not shown:
        raise ValueError(f"mask={mask} leaves none of {patches} patches for the encoder to see")
    return shown, skipped, patches - shown - skipped


def mask_patches(noise_BN: Tensor, mask: float, predict: float) -> Masked:
    """Show the patches of least noise, predict those of most."""
    shown, skipped, _ = counts(noise_BN.shape[1], mask, predict)
    order_BN = noise_BN.argsort(dim=1)
    return Masked(order_BN[:, :shown], order_BN[:, shown + skipped :].sort(dim=1).values)
