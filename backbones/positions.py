"""Position tables: the fixed two-dimensional sine-cosine table, and resizing of tables and patch kernels.

A position is (row y, column x) of a patch. Its vector of length D is [e(x), e(y)], the column first, where
e(t) = [sin(t w), cos(t w)] and w_i = 10000^(-i / (D/4)), i = 0 .. D/4 - 1. The class token's vector is zero.
Indices are not rescaled with the resolution: a 28 x 28 grid uses 0 .. 27.

MAE computes w in double precision, as here; CrossMAE's own table uses single precision for w and so differs
by at most 3e-6. If a checkpoint holds its own table, that table is used unchanged.

The way a position table is resized to another grid changes results (by up to .17 on values in -1..1, from 14 to 7
patches a side), so every result names the method:

    bicubic            corners not aligned, no antialiasing: MAE, CrossMAE, ViTDet
    bicubic-antialias  with antialiasing: timm; its kernel differs, so enlarging differs too
    bilinear-antialias bilinear with antialiasing: TIPS
    bilinear-square    bilinear to the square of the longer side, then cut to the image: C-RADIO
    bicubic-offset     scaled by the factor (rows + .1) / n instead of to a size: DINO, DINOv2 without registers
    regenerate         the fixed sine-cosine table is computed for the new grid

Shapes: n and m patches of a grid, D width, p patch side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.config import Interpolation

TOLERANCE = 2e-3  # a table stored in half precision is off by 5e-4, CrossMAE's own by 3e-6; a learned one by far more


def sincos_2d(width: int, grid: tuple[int, int], class_token: bool = True) -> Tensor:
    """Return the fixed sine-cosine position table of a grid.

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
    """Return the patches along one side of the square grid of `table` (1, 1 + n * n, D).

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
    """Resize the rows (1, side * side, D) of a square grid to (1, rows * columns, D); corners are not aligned.

    With `offset` the scale is (rows + offset) / side instead of rows / side; DINO uses 0.1.
    """
    image = rows.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if offset:
        factors = [(new + offset) / side for new in grid]
        resized = F.interpolate(image, scale_factor=factors, mode=kernel, align_corners=False, antialias=antialias)
    else:
        resized = F.interpolate(image, size=grid, mode=kernel, align_corners=False, antialias=antialias)
    assert resized.shape[2:] == grid
    return resized.flatten(2).transpose(1, 2)


def fixed_table(width: int, grid: tuple[int, int], rows_first: bool = False) -> Tensor:
    """Return MAE's sine-cosine table (1, rows * columns, D); with `rows_first` MoCo v3's, which puts the row first."""
    table = sincos_2d(width, grid, class_token=False)
    return table.roll(width // 2, dims=2) if rows_first else table


def rows_first(table: Tensor) -> bool | None:
    """Tell which fixed table `table` (1, [1 +] n * n, D) is: MAE's (False), MoCo v3's (True), or neither (None)."""
    if table.ndim != 3 or table.shape[2] % 4 or not table.is_floating_point():
        return None
    patches, _ = split_table(table)
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        return None
    corner = sincos_2d(table.shape[2], (1, 1), class_token=False)[0, 0]  # the first patch's row in both: a quick no
    if not torch.allclose(patches[0, 0].float(), corner, rtol=0, atol=TOLERANCE):
        return None
    for first in (False, True):
        if torch.allclose(patches.float(), fixed_table(table.shape[2], (side, side), first), rtol=0, atol=TOLERANCE):
            return first
    return None


def split_table(table: Tensor) -> tuple[Tensor, Tensor]:
    """Split a table into the rows of the patches and the class token's row (empty if the table has none)."""
    extra = 0 if math.isqrt(table.shape[1]) ** 2 == table.shape[1] else 1
    return table[:, extra:], table[:, :extra]


def resize_positions(table: Tensor, grid: tuple[int, int], how: Interpolation = "bicubic") -> Tensor:
    """Resize `table` (1, [1 +] n * n, D) to `grid`: (1, [1 +] rows * columns, D); the class token's row is unchanged.

    Returns `table` itself if it already has this grid.

    Raises:
        ValueError: if `table` has no square grid, or `how` is "regenerate" and it is not a fixed table.
    """
    patches, token = split_table(table)
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1] or not side:
        raise ValueError(f"a position table of {table.shape[1]} rows is not a square grid with or without class token")
    if grid == (side, side):
        return table
    if how == "regenerate":
        resized = _regenerated(table, grid)
    elif how == "bilinear-square":
        square = interpolate_rows(patches, side, (max(grid), max(grid)), kernel="bilinear")
        resized = square.unflatten(1, (max(grid), max(grid)))[:, : grid[0], : grid[1]].flatten(1, 2)
    else:
        offset = 0.1 if how == "bicubic-offset" else 0.0
        kernel, antialias = how.split("-")[0], how.endswith("-antialias")
        resized = interpolate_rows(patches, side, grid, antialias=antialias, offset=offset, kernel=kernel)
    return torch.cat([token, resized], dim=1)


def _regenerated(table: Tensor, grid: tuple[int, int]) -> Tensor:
    first = rows_first(table)
    if first is None:
        raise ValueError(
            "positions=regenerate needs a fixed sine-cosine table, but this encoder learned its table; "
            "use bicubic or bicubic-antialias"
        )
    return fixed_table(table.shape[2], grid, first).to(table)


def resize_kernel(kernel: Tensor, patch: int) -> Tensor:
    """Resize a kernel (D, 3, p, p) to patches of side `patch`: bicubic, as ViTDet does for ViT-H, from 14 to 16."""
    if kernel.shape[-2:] == (patch, patch):
        return kernel
    return F.interpolate(kernel, size=(patch, patch), mode="bicubic", align_corners=False)
