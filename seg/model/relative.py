"""BEiT's relative positions: the row of the table for each pair of tokens, and resizing of tables.

A table for a grid of n x n patches has (2n - 1) ** 2 rows, one for each offset between two patches, and three more:
class token to patch, patch to class token, class token to itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXTRA = 3  # rows for the class token
SMALLEST, LARGEST, PRECISION = 1.01, 1.5, 1e-6  # bounds and precision of the geometric ratio in BEiT's bisection


def rows_of(grid: int) -> int:
    """Return the number of rows of the table for `grid` x `grid` patches."""
    return (2 * grid - 1) ** 2 + EXTRA


def relative_index(grid: int) -> Tensor:
    """Return the row for each pair (token, token), class token first: int64 (1 + n * n, 1 + n * n)."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    y, x = rows.flatten(), columns.flatten()
    down, right = (axis[:, None] - axis[None] + grid - 1 for axis in (y, x))
    last = rows_of(grid)
    index = torch.empty(1 + grid * grid, 1 + grid * grid, dtype=torch.int64)
    index[1:, 1:] = down * (2 * grid - 1) + right
    index[0], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


def resize_relative(table: Tensor, grid: int) -> Tensor:
    """Resize a table (rows, heads) to another grid as BEiT's code does; returns `table` itself for the same grid.

    The old offsets are placed at the partial sums of a geometric series that ends at the largest new offset, so that
    near offsets keep their places; a cubic spline interpolates between them. The class token's rows are unchanged.

    Raises:
        ValueError: if the table does not fit a square grid.
    """
    side = math.isqrt(max(len(table) - EXTRA, 0))
    if side * side != len(table) - EXTRA or side % 2 == 0:
        raise ValueError(f"a table of {len(table)} relative positions does not fit a square grid of patches")
    if side == 2 * grid - 1:
        return table
    places = _places(side // 2, grid - 1)
    wanted = np.arange(-(grid - 1), grid, dtype=np.float64)
    heads = [_spline(column.reshape(side, side), places, wanted) for column in table[:-EXTRA].double().numpy().T]
    return torch.cat([torch.from_numpy(np.stack(heads, axis=1)).to(table), table[-EXTRA:]])


def _spline(
    values: NDArray[np.float64], places: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate `values` (side, side), located at `places` on both axes, at the offsets `wanted`: (wanted ** 2,)."""
    from scipy.interpolate import RectBivariateSpline

    resized: NDArray[np.float64] = RectBivariateSpline(places, places, values)(wanted, wanted)
    return resized.reshape(-1)


def _places(source: int, largest: int) -> NDArray[np.float64]:
    """Return the places of the offsets -source .. source; the outermost is at `largest` or slightly beyond."""
    ratio, low, high = SMALLEST, SMALLEST, LARGEST
    while high - low > PRECISION:
        ratio = (low + high) / 2
        if (1 - ratio**source) / (1 - ratio) > largest:
            high = ratio
        else:
            low = ratio
    sums = np.cumsum(ratio ** np.arange(source))
    return np.concatenate([-sums[::-1], [0.0], sums])
