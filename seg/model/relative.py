"""BEiT's relative positions: which entry of the table each pair of tokens looks up, and tables for other grids.

A table for a grid of n x n patches has (2n - 1) ** 2 rows, one for each offset between two patches, and three more:
class token to patch, patch to class token, class token to itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXTRA = 3  # rows that concern the class token
SMALLEST, LARGEST, PRECISION = 1.01, 1.5, 1e-6  # of the ratio of the geometric series, in BEiT's bisection


def rows_of(grid: int) -> int:
    """Rows of the table for `grid` x `grid` patches."""
    return (2 * grid - 1) ** 2 + EXTRA


def relative_index(grid: int) -> Tensor:
    """The row for each pair (token, token), class token first: int64 (1 + n * n, 1 + n * n)."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    y, x = rows.flatten(), columns.flatten()
    down, right = (axis[:, None] - axis[None] + grid - 1 for axis in (y, x))
    last = rows_of(grid)
    index = torch.empty(1 + grid * grid, 1 + grid * grid, dtype=torch.int64)
    index[1:, 1:] = down * (2 * grid - 1) + right
    index[0], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


def resize_relative(table: Tensor, grid: int) -> Tensor:
    """A table (rows, heads) for another grid, as BEiT's code does it; the same grid gives the same tensor back.

    The old offsets are placed at the partial sums of a geometric series that ends at the largest new offset, so that
    near offsets keep their place; between them a cubic spline. The class token's rows are kept.

    Raises:
        ValueError: if the table is of no square grid.
    """
    side = math.isqrt(max(len(table) - EXTRA, 0))
    if side * side != len(table) - EXTRA or side % 2 == 0:
        raise ValueError(f"a table of {len(table)} relative positions is of no square grid of patches")
    if side == 2 * grid - 1:
        return table
    places = _places(side // 2, grid - 1)
    wanted = np.arange(-(grid - 1), grid, dtype=np.float64)
    heads = [_spline(column.reshape(side, side), places, wanted) for column in table[:-EXTRA].double().numpy().T]
    return torch.cat([torch.from_numpy(np.stack(heads, axis=1)).to(table), table[-EXTRA:]])


def _spline(
    values: NDArray[np.float64], places: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`values` (side, side) at `places` along both axes, at the offsets `wanted`: (wanted * wanted,)."""
    from scipy.interpolate import RectBivariateSpline

    resized: NDArray[np.float64] = RectBivariateSpline(places, places, values)(wanted, wanted)
    return resized.reshape(-1)


def _places(source: int, largest: int) -> NDArray[np.float64]:
    """Where the offsets -source .. source are put, so that the outermost falls on `largest` or a trifle beyond."""
    ratio, low, high = SMALLEST, SMALLEST, LARGEST
    while high - low > PRECISION:
        ratio = (low + high) / 2
        if (1 - ratio**source) / (1 - ratio) > largest:
            high = ratio
        else:
            low = ratio
    sums = np.cumsum(ratio ** np.arange(source))
    return np.concatenate([-sums[::-1], [0.0], sums])
