"""Fixed two-dimensional sine-cosine positions, and their change of size.

A position is (row y, column x) of a patch. Its vector of length D is [e(x), e(y)], the column first, where
e(t) = [sin(t w), cos(t w)] and w_i = 10000^(-i / (D/4)), i = 0 .. D/4 - 1. The class token's vector is zero.
Indices are not rescaled with the resolution: a 28 x 28 grid uses 0 .. 27.

MAE computes w in double precision, as here; CrossMAE's own table uses single precision for w and so differs
by at most 3e-6. A checkpoint brings its own table along, which is then used as it is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(width: int, grid: tuple[int, int], class_token: bool = True) -> Tensor:
    """The position table of a grid.

    Args:
        width: length of a position's vector, a multiple of 4.
        grid: rows and columns of patches.
        class_token: put the zero vector of the class token first.

    Returns:
        (1, [1 +] rows * columns, width) in float32, patches in row-major order.
    """
    if width % 4:
        raise ValueError(f"width={width} must be a multiple of 4: a quarter each for sin and cos of column and row")
    rows, columns = grid
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles_x, angles_y = (torch.outer(t.flatten().double(), frequency) for t in (x, y))
    table = torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1)
    if class_token:
        table = torch.cat([table.new_zeros(1, width), table])
    return table[None].float()


def square_side(table: Tensor) -> int:
    """Patches along one side of the square grid that `table` (1, 1 + n * n, D) describes.

    Raises:
        ValueError: if the number of patches is not a square.
    """
    patches = table.shape[1] - 1
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise ValueError(f"a position table of {table.shape[1]} rows is not one class token and a square grid")
    return side


def interpolate_rows(
    rows: Tensor,
    side: int,
    grid: tuple[int, int],
    antialias: bool = False,
    offset: float = 0.0,
    kernel: str = "bicubic",
) -> Tensor:
    """The rows (1, side * side, D) of a square grid for another: (1, rows * columns, D); corners not aligned.

    `offset` scales by (rows + offset) / side instead of to the size itself: DINO's way, with 0.1.
    """
    image = rows.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if offset:
        factors = [(new + offset) / side for new in grid]
        resized = F.interpolate(image, scale_factor=factors, mode=kernel, align_corners=False, antialias=antialias)
    else:
        resized = F.interpolate(image, size=grid, mode=kernel, align_corners=False, antialias=antialias)
    assert resized.shape[2:] == grid
    return resized.flatten(2).transpose(1, 2)


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """`table` (1, 1 + n * n, D) for another grid: (1, 1 + rows * columns, D); the class token's row is kept.

    Bicubic, corners not aligned, no antialiasing: what MAE, CrossMAE and ViTDet do. (timm's resampler antialiases,
    which gives other values when the grid shrinks.) The same grid gives the same tensor back.
    """
    side = square_side(table)
    if grid == (side, side):
        return table
    return torch.cat([table[:, :1], interpolate_rows(table[:, 1:], side, grid)], dim=1)
