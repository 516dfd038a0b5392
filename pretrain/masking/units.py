"""Masking in squares of patches that are drawn as one: SimMIM's units of 32 pixels, two patches wide.

`InUnits` wraps any masking. A square uses the noise of its first patch, and the sum of its patches' weights.

Shapes: B image, N patch (row-major), U unit (row-major).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimbench.pretrain.masking.strategies import Counts, Masked, Masking


class InUnits:
    """`masking` applied to units of `unit` by `unit` patches."""

    def __init__(self, masking: Masking, unit: int) -> None:
        self.masking, self.unit = masking, unit
        self.needs_weights = masking.needs_weights

    def counts(self, patches: int, epoch: float) -> Counts:
        """See `Masking`; units are counted first, then their patches.

        Raises:
            ValueError: also if the patches do not form whole units.
        """
        area = self.unit**2
        if patches % area:
            raise ValueError(f"{patches} patches cannot be divided into squares of unit={self.unit} by {self.unit}")
        return Counts(*(area * count for count in self.masking.counts(patches // area, epoch)))

    def __call__(self, noise_BN: Tensor, weights_BN: Tensor | None, grid: tuple[int, int], epoch: float) -> Masked:
        """See `Masking`.

        Raises:
            ValueError: if rows or columns are not a multiple of the unit.
        """
        unit = self.unit
        if grid[0] % unit or grid[1] % unit:
            raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches cannot be divided into squares of unit={unit}")
        noise_BU = noise_BN.unflatten(1, grid)[:, ::unit, ::unit].flatten(1)
        weights_BU = None if weights_BN is None else unit_sums(weights_BN, grid, unit)
        masked = self.masking(noise_BU, weights_BU, (grid[0] // unit, grid[1] // unit), epoch)
        shown, predicted, dropped = (unit_patches(index_BU, grid[1], unit) for index_BU in masked)
        return Masked(shown, predicted.sort(dim=1).values, dropped)


def unit_sums(weights_BN: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """Return the sum of the weights in each unit, (B, U)."""
    return weights_BN.unflatten(1, (grid[0] // unit, unit, grid[1] // unit, unit)).sum(dim=(2, 4)).flatten(1)


def unit_patches(index_BU: Tensor, columns: int, unit: int) -> Tensor:
    """Return the patches of the units at `index_BU`, unit by unit; `columns` is the grid's patches per row."""
    across = columns // unit
    first_BU = (index_BU // across * columns + index_BU % across) * unit
    side = torch.arange(unit, device=index_BU.device)
    within = (side[:, None] * columns + side).flatten()
    return (first_BU[..., None] + within).flatten(1)
