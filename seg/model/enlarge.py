"""Bilinear enlargement (corners not aligned), whole or by rows, by fixed matrices along each axis.

Logits of 150 classes at the size of a label map take 157 MB per image; by rows they are never in memory all at once.

Shapes: C channels, h x w of a map, H x W its new size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, C, h, w) bilinearly to `size`, corners not aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@lru_cache(maxsize=64)
def matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (target, source) that resizes an axis bilinearly."""
    identity = torch.eye(source, dtype=torch.float64)[None]
    made = F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T
    return made.to(device, dtype).contiguous()


def shifted(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return matrices (3, target, source) that resize an axis bilinearly and shift it by -1, 0 and 1, zero-padded."""
    padded = F.pad(matrix(source, target, dtype, device), (0, 0, 1, 1))
    return torch.stack([padded[shift : shift + target] for shift in range(3)])


@lru_cache(maxsize=64)
def bands(source: int, target: int, step: int) -> tuple[tuple[slice, slice], ...]:
    """Return for each `step` rows of a resized map: their slice, and the slice of source rows they depend on."""
    used = matrix(source, target, torch.float64, torch.device("cpu")) != 0
    found = []
    for start in range(0, target, step):
        rows = slice(start, min(start + step, target))
        needed = used[rows].any(0).nonzero()[:, 0]
        found.append((rows, slice(int(needed[0]), int(needed[-1]) + 1)))
    return tuple(found)


class Rows:
    """Resize a map (C, h, w) some rows at a time: vertically by a matrix, horizontally by torch's kernel.

    Args:
        source: h and w.
        size: H and W.
        step: number of rows at a time.
        like: a tensor with the dtype and device of the maps.
    """

    def __init__(self, source: Sequence[int], size: Sequence[int], step: int, like: Tensor) -> None:
        self.down_Hh = matrix(source[0], size[0], like.dtype, like.device)
        self.bands = bands(source[0], size[0], step)
        self.widths = (source[1], size[1])

    def each(self, map_Chw: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Yield the slices of the rows and of their source band, and the rows' values (C, r, W)."""
        for rows, band in self.bands:
            lowered = torch.matmul(self.down_Hh[rows, band], map_Chw[:, band])
            yield (rows, band), enlarged(lowered[None], (lowered.shape[1], self.widths[1]))[0]

    def add_back(self, gradient_Chw: Tensor, of_rows_CrW: Tensor, at: tuple[slice, slice]) -> None:
        """Add the gradient of some rows to the gradient of the map."""
        rows, band = at
        channels, height = of_rows_CrW.shape[:2]
        narrow, wide = self.widths
        across = torch.ops.aten.upsample_bilinear2d_backward(
            of_rows_CrW[None], (height, wide), (1, channels, height, narrow), False
        )[0]
        gradient_Chw[:, band] += torch.matmul(self.down_Hh[rows, band].T, across)
