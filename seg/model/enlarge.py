"""Bilinear enlargement (corners not aligned), whole or by rows, as fixed matrices along each axis.

Logits of 150 classes at the size of a label map fill 157 MB an image; by rows they never stand in memory together.

Shapes: C channels, h x w of a map, H x W its new size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) resized bilinearly to `size`, corners not aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@lru_cache(maxsize=64)
def matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (target, source) that resizes an axis bilinearly."""
    identity = torch.eye(source, dtype=torch.float64)[None]
    made = F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T
    return made.to(device, dtype).contiguous()


def shifted(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrices (3, target, source) that resize an axis bilinearly and shift it by -1, 0 and 1; zeros beyond."""
    padded = F.pad(matrix(source, target, dtype, device), (0, 0, 1, 1))
    return torch.stack([padded[shift : shift + target] for shift in range(3)])


class Rows:
    """A map (C, h, w) at another size, some rows at a time.

    Attributes:
        slices: of the rows, which cover all of them.
    """

    def __init__(self, source: Sequence[int], size: Sequence[int], step: int, like: Tensor) -> None:
        self.down_Hh = matrix(source[0], size[0], like.dtype, like.device)
        self.across_Ww = matrix(source[1], size[1], like.dtype, like.device)
        self.slices = [slice(start, min(start + step, size[0])) for start in range(0, size[0], step)]

    def of(self, map_Chw: Tensor, rows: slice) -> Tensor:
        """The rows (C, r, W)."""
        return torch.matmul(self.down_Hh[rows], map_Chw) @ self.across_Ww.T

    def back(self, gradient_CrW: Tensor, rows: slice) -> Tensor:
        """The gradient (C, h, w) of the map, of that of its rows."""
        return torch.matmul(self.down_Hh[rows].T, gradient_CrW @ self.across_Ww)

    def each(self, map_Chw: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows and what they hold."""
        for rows in self.slices:
            yield rows, self.of(map_Chw, rows)
