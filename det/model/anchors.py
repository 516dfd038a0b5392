"""Anchors: reference boxes of one size and a few aspect ratios at every cell of every pyramid level.

detectron2's `DefaultAnchorGenerator` with `offset=0`, as in ViTDet: the anchors of cell (y, x) are centred on
(x * stride, y * stride), the corner of the cell. Order: level, row, column, aspect ratio.
"""

# A anchor, Q aspect ratio

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Grids = tuple[tuple[int, int], ...]


class Anchors:
    """Computes and caches the anchors of a pyramid's levels."""

    def __init__(self, sizes: Sequence[float], ratios: Sequence[float], strides: Sequence[int]) -> None:
        """`sizes` is the square root of an anchor's area in pixels, one per level; `ratios` are height / width."""
        self.sizes, self.ratios, self.strides = tuple(sizes), tuple(ratios), tuple(strides)
        self._made: tuple[tuple[Grids, torch.device], list[Tensor]] | None = None

    @property
    def per_cell(self) -> int:
        """Number of anchors per cell."""
        return len(self.ratios)

    def __call__(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return boxes (A, 4) in float32 for each level's map (B, C, h, w)."""
        key = (tuple((m.shape[-2], m.shape[-1]) for m in maps), maps[0].device)
        if self._made is None or self._made[0] != key:
            levels = zip(key[0], self.sizes, self.strides, strict=True)
            self._made = key, [self._level(*level).to(key[1]) for level in levels]
        return self._made[1]

    def _level(self, grid: tuple[int, int], size: float, stride: int) -> Tensor:
        x, y = (torch.arange(cells, dtype=torch.float32) * stride for cells in reversed(grid))
        corner_y, corner_x = torch.meshgrid(y, x, indexing="ij")
        corner_A4 = torch.stack([corner_x, corner_y, corner_x, corner_y], dim=-1).view(-1, 1, 4)
        return (corner_A4 + self._cell(size)).view(-1, 4)

    def _cell(self, size: float) -> Tensor:
        """Return the anchors around the origin, (Q, 4)."""
        widths = [math.sqrt(size**2 / ratio) for ratio in self.ratios]
        halves = [(w / 2, ratio * w / 2) for w, ratio in zip(widths, self.ratios, strict=True)]
        return torch.tensor([(-x, -y, x, y) for x, y in halves])
