"""Maskings: choose which patches of each image are shown, predicted and dropped; one interface for all methods.

    masking = Random(RandomMasking(mask_ratio=0.75, predict=0.25))
    masked = masking(noise_BN, None, grid=(14, 14), epoch=0.0)     # Masked(shown, predicted, dropped)

All counts depend only on the config (and the epoch), so no shape depends on data: nothing waits for the device,
and a step can be compiled. Randomness is passed in as noise; the same noise selects the same patches in every
implementation that sorts it. A method gets the indices and does not know the masking.

Shapes: B image, N patch (row-major), V patch shown, Q patch predicted, X patch dropped.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mimbench.pretrain.masking.configs import GridMasking, KeepMasking, RandomMasking

LEAST_WEIGHT = 1e-30  # replaces a weight of zero: such patches come last, in random order


class Masked(NamedTuple):
    """Row-major indices of patches, int64. Together they contain every patch once."""

    shown: Tensor  # (B, V), in the order of the draw, which does not matter to the encoder
    predicted: Tensor  # (B, Q), ascending; Q may be 0
    dropped: Tensor  # (B, X), neither shown nor predicted; X may be 0


class Counts(NamedTuple):
    """The numbers of an image's patches that are shown, dropped (neither shown nor predicted) and predicted."""

    shown: int
    dropped: int
    predicted: int


class Masking(Protocol):
    """The interface of maskings."""

    needs_weights: bool  # whether it draws by patch weights, at least in some epochs

    def counts(self, patches: int, epoch: float) -> Counts:
        """Return the counts for `patches` during `epoch`, without drawing.

        Raises:
            ValueError: if none would be shown, or none predicted although the config requires some.
        """
        ...

    def __call__(self, noise_BN: Tensor, weights_BN: Tensor | None, grid: tuple[int, int], epoch: float) -> Masked:
        """Choose patches.

        Args:
            noise_BN: uniform in [0, 1), the only source of randomness.
            weights_BN: not negative, of any scale; None: all equal.
            grid: rows and columns of patches, N in total.
            epoch: epochs done, as a fraction.
        """
        ...


def fixed_counts(patches: int, mask: float, predict: float) -> Counts:
    """Return the counts for `patches` with a share `mask` hidden and `predict` predicted, rounded as in CrossMAE.

    Of 196 patches, mask .75 and predict .25 give 49, 98, 49; mask .65 and predict .65 give 68, 0, 128.

    Raises:
        ValueError: if none would be shown.
    """
    shown, dropped = int(patches * (1 - mask)), int(patches * (mask - predict))
    if not shown:
        raise ValueError(f"mask_ratio={mask} leaves none of {patches} patches for the encoder to see; lower mask_ratio")
    return Counts(shown, dropped, patches - shown - dropped)


def unit_counts(units: int, mask: float, predict: float) -> Counts:
    """Return the counts for units, rounded up as in SimMIM: of 49, mask .6 and predict .6 give 19, 0, 30.

    Raises:
        ValueError: if none would be shown.
    """
    hidden, predicted = math.ceil(units * mask), math.ceil(units * predict)
    if hidden >= units:
        raise ValueError(f"mask_ratio={mask} leaves none of {units} units for the encoder to see; lower mask_ratio")
    return Counts(units - hidden, hidden - predicted, predicted)


def split_order(order_BN: Tensor, counts: Counts) -> Masked:
    """Return the patches by the order of a draw: the first are shown, the next dropped, the last predicted."""
    shown, dropped, predicted = order_BN.split(counts, dim=1)
    return Masked(shown, predicted.sort(dim=1).values, dropped)


def weighted_order(noise_BN: Tensor, weights_BN: Tensor | None) -> Tensor:
    """Return the order (B, N) of a draw without replacement, in proportion to the remaining weights.

    An exponential race: patch n arrives after -log(noise) / weight. The distribution equals `torch.multinomial`
    without replacement. Patches of zero weight come last, in random order. Without weights all are equal.
    """
    if weights_BN is None:
        return noise_BN.argsort(dim=1, descending=True)
    exact = torch.promote_types(weights_BN.dtype, torch.float32)
    return (-noise_BN.to(exact).log() / weights_BN.to(exact).clamp_min(LEAST_WEIGHT)).argsort(dim=1)


class Random:
    """The patches with the lowest noise are shown, those with the highest are predicted."""

    needs_weights = False

    def __init__(self, config: RandomMasking) -> None:
        self.config = config

    def counts(self, patches: int, epoch: float) -> Counts:
        """See `Masking`."""
        count = fixed_counts if self.config.unit == 1 else unit_counts
        return count(patches, self.config.mask_ratio, self.config.predict)

    def __call__(self, noise_BN: Tensor, weights_BN: Tensor | None, grid: tuple[int, int], epoch: float) -> Masked:
        """See `Masking`."""
        return split_order(noise_BN.argsort(dim=1), self.counts(noise_BN.shape[1], epoch))


class Grid:
    """One patch of each `cell` by `cell` square is shown, at the same position in each, drawn for each image."""

    needs_weights = False

    def __init__(self, config: GridMasking) -> None:
        self.config = config

    def counts(self, patches: int, epoch: float) -> Counts:
        """See `Masking`."""
        cell, predict = self.config.cell, self.config.predict
        if patches % cell**2:
            raise ValueError(f"{patches} patches cannot be divided into squares of cell={cell} by {cell}")
        shown, dropped = patches // cell**2, int(patches * (self.config.hidden_share - predict))
        return Counts(shown, dropped, patches - shown - dropped)

    def __call__(self, noise_BN: Tensor, weights_BN: Tensor | None, grid: tuple[int, int], epoch: float) -> Masked:
        """See `Masking`.

        Raises:
            ValueError: if rows or columns are not a multiple of `cell`.
        """
        cell = self.config.cell
        if grid[0] % cell or grid[1] % cell:
            raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches cannot be divided into squares of cell={cell}")
        row, column = (torch.arange(side, device=noise_BN.device) % cell for side in grid)
        place_N = (row[:, None] * cell + column).flatten()  # within its square
        scaled_B1 = noise_BN[:, :1] * cell**2  # the integer part selects the position, the fraction is noise
        drawn_B1 = scaled_B1.floor()
        rest_BN = torch.cat([scaled_B1 - drawn_B1, noise_BN[:, 1:]], dim=1)
        order_BN = torch.where(place_N == drawn_B1, rest_BN - 1, rest_BN).argsort(dim=1)
        return split_order(order_BN, self.counts(noise_BN.shape[1], epoch))


class Keep:
    """Patches to show are drawn in proportion to their weights; the others are dropped."""

    needs_weights = True

    def __init__(self, config: KeepMasking) -> None:
        self.config = config

    def counts(self, patches: int, epoch: float) -> Counts:
        """See `Masking`."""
        shown, _, hidden = fixed_counts(patches, self.config.mask_ratio, self.config.mask_ratio)
        return Counts(shown, hidden, 0)

    def __call__(self, noise_BN: Tensor, weights_BN: Tensor | None, grid: tuple[int, int], epoch: float) -> Masked:
        """See `Masking`."""
        return split_order(weighted_order(noise_BN, weights_BN), self.counts(noise_BN.shape[1], epoch))
