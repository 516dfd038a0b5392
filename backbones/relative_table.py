"""BEiT's and SimMIM's tables of relative positions, used in windows and on grids of other sizes.

A table (rows, heads) is learned for a grid of n x n patches. Its first (2 n - 1)^2 rows are biases: the key at (i, j)
adds row (y - i + n - 1) (2 n - 1) + (x - j + n - 1) to the logit of the query at (y, x). With a class token three rows
follow: the bias of a patch in the class token's logit, of the class token in a patch's, and of the class token in its
own.

A grid of the same size or smaller uses the middle of the table. That is exact, because its distances occurred in
pretraining. A larger grid has distances that did not. For these, BEiT's detection and segmentation code stretches the
table: it places the learned distances at 0, 1, 1 + q, 1 + q + q^2, ..., so the nearest stay and the last one reaches
the largest distance, and interpolates between them by a cubic spline (microsoft/unilm,
beit/semantic_segmentation/mmcv_custom/checkpoint.py). timm interpolates linearly on the same axis, which differs by up
to .07 on values of .25.
"""

# n patches along a side of the learned grid, h and w of the grid asked for, P token before the patches

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from mimbench.backbones.config import RelativeResize

CLASS_ROWS = 3


def table_side(rows: int) -> tuple[int, int]:
    """Return the patches along a side of the grid of a table of `rows` rows, and the number of class token rows.

    Raises:
        ValueError: if no square grid has this number of rows.
    """
    for extra in (0, CLASS_ROWS):
        side = math.isqrt(max(rows - extra, 0))
        if side * side == rows - extra and side % 2:
            return (side + 1) // 2, extra
    raise ValueError(f"a table of relative positions with {rows} rows does not fit a square grid")


def resize_relative(table_RH: Tensor, grid: tuple[int, int], how: RelativeResize = "cubic") -> Tensor:
    """Resize a table to `grid`: ((2 h - 1) (2 w - 1) [+ 3], heads); the class token's rows are unchanged.

    Raises:
        ValueError: if the grid is larger than the table's and `how` is "none".
    """
    side, extra = table_side(len(table_RH))
    if grid == (side, side):
        return table_RH
    if how == "none" and max(grid) > side:
        raise ValueError(
            f"this encoder's table of relative positions is for {side} x {side} patches and not for {grid[0]} x "
            f"{grid[1]}; relative_resize=cubic stretches it, as BEiT's own detectors do"
        )
    patches = table_RH[: len(table_RH) - extra].unflatten(0, (2 * side - 1, 2 * side - 1))
    for axis, new in enumerate(grid):
        if new <= side:
            patches = patches.narrow(axis, side - new, 2 * new - 1)
        else:
            patches = torch.tensordot(stretch(side, new, how).to(table_RH), patches.movedim(axis, 0), 1).movedim(
                0, axis
            )
    return torch.cat([patches.flatten(0, 1), table_RH[len(table_RH) - extra :]])


@lru_cache(maxsize=64)
def stretch(side: int, new: int, how: RelativeResize = "cubic") -> Tensor:
    """Return the matrix (2 new - 1, 2 side - 1), in double precision, that stretches an axis of a table to `new`."""
    from scipy.interpolate import make_interp_spline  # takes a tenth of the time of `mimbench inspect`

    learned = geometric_axis(side, new)
    wanted = torch.arange(1 - new, new, dtype=torch.float64).clamp(learned[0], learned[-1])
    degree = min(3 if how == "cubic" else 1, len(learned) - 1)
    spline = make_interp_spline(learned.numpy(), torch.eye(len(learned), dtype=torch.float64).numpy(), k=degree)
    return torch.from_numpy(spline(wanted.numpy()))


def geometric_axis(side: int, new: int) -> Tensor:
    """Return the places of the 2 side - 1 learned distances: 0, 1, 1 + q, ... up to new - 1, mirrored below zero.

    q is in 1.01..1.5, found by bisection to 1e-6; if it would exceed 1.5, the last distance is below new - 1. BEiT and
    timm take the last q tried, we take the middle of the remaining interval: values differ by up to a relative 3e-5.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1.0 - ratio ** (side - 1)) / (1.0 - ratio)
        low, high = (low, ratio) if reach > new - 1 else (ratio, high)
    ratio = (low + high) / 2
    distances = (ratio ** torch.arange(side - 1, dtype=torch.float64)).cumsum(0)
    return torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])


def relative_bias(rows_RH: Tensor, grid: tuple[int, int], prefix: int = 0) -> Tensor:
    """Return the bias of each key in each query's logit, (heads, P + h w, P + h w), from the rows of `grid`'s table.

    All `prefix` tokens before the patches use the class token's rows.
    """
    height, width = grid
    patches = rows_RH[: (2 * height - 1) * (2 * width - 1)]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    row = (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)
    between = patches.T[:, row.to(patches.device)]
    if not prefix:
        return between
    class_to_patch, patch_to_class, own = rows_RH[-CLASS_ROWS:]
    tokens = height * width
    top = torch.cat([_filled(own, prefix, prefix), _filled(class_to_patch, prefix, tokens)], dim=2)
    return torch.cat([top, torch.cat([_filled(patch_to_class, tokens, prefix), between], dim=2)], dim=1)


def _filled(value_H: Tensor, rows: int, columns: int) -> Tensor:
    return value_H[:, None, None].expand(-1, rows, columns)
