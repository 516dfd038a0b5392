"""Rotary positions: queries and keys are rotated by angles that depend on the position of their patch.

RotaryPositions     DINOv3's: positions in -1..1 for every grid
EvaPositions        EVA-02's and the Perception Encoder's: positions in patches of the pretraining grid
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.backbones.config import Rope, Traits


class RotaryPositions(nn.Module):
    """DINOv3's axial rotary positions for a grid of any size; no trained weights, but `periods` in the checkpoint.

    The patch in row i of h has the position 2 (i + 1/2) / h - 1, in -1..1, and its column likewise; each period p turns
    a pair of channels by 2 pi of that over p. The periods are read from the file, because released files hold them
    rounded to bfloat16. A grid's table is computed once, and again when the periods change.
    """

    rotates_halves = True  # a pair is channels j and j + d / 2

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.register_buffer("periods", rotary_periods(head_width))
        self.periods: Tensor
        self._tables: dict[Any, Tensor] = {}

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Return (h * w, 2 d): for each patch the sines, then the cosines, of the d channels of a head."""
        periods = self.periods
        key = (grid, periods.device, periods.dtype, periods._version)
        if key not in self._tables:
            self._tables = {old: table for old, table in self._tables.items() if old[1:] == key[1:]}
            with torch.inference_mode(False), torch.no_grad():
                self._tables[key] = self._table(grid)
        return self._tables[key]

    def _table(self, grid: tuple[int, int]) -> Tensor:
        axes = [2 * (torch.arange(side).to(self.periods) + 0.5) / side - 1 for side in grid]
        place_hw2 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        angle = (2 * math.pi * place_hw2[..., None] / self.periods).flatten(2).flatten(0, 1).tile(2)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class EvaPositions(RotaryPositions):
    """The rotary positions that `Rope` describes, for a grid of any size; checkpoints hold nothing of them.

    They are computed in double precision and kept in single precision, or in the encoder's if that is higher.
    """

    rotates_halves = False  # a pair is channels 2 j and 2 j + 1

    def __init__(self, head_width: int, rope: Rope) -> None:
        nn.Module.__init__(self)
        self.rope = rope
        periods = rope.theta ** (torch.arange(head_width // 4, dtype=torch.float64) / (head_width // 4))
        self.register_buffer("periods", periods.float(), persistent=False)  # tells device and precision
        self.head_width = head_width
        self._tables = {}

    def _table(self, grid: tuple[int, int]) -> Tensor:
        exponent = torch.arange(self.head_width // 4, dtype=torch.float64) / (self.head_width // 4)
        steps = [1.0 if self.rope.span is None else self.rope.span / side for side in grid]
        y, x = ((torch.arange(n).double() + self.rope.offset) * step for n, step in zip(grid, steps, strict=True))
        place_hw2 = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
        place_hw2 = place_hw2 if self.rope.order == "yx" else place_hw2.flip(-1)
        angle = place_hw2[..., None] * self.rope.theta**-exponent
        angle = angle.repeat_interleave(2, dim=-1).flatten(2).flatten(0, 1)
        table = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return table.to(self.periods.device, torch.promote_types(self.periods.dtype, torch.float32))


def rotary_positions(head_width: int, traits: Traits) -> RotaryPositions | None:
    """Build the rotary positions of an encoder with `traits` and heads `head_width` wide; None if it has none."""
    if traits.rope is not None:
        return EvaPositions(head_width, traits.rope)
    return RotaryPositions(head_width) if traits.positions == "rope" else None


def rotated(heads: Tensor, table: Tensor, half: bool) -> Tensor:
    """Rotate queries or keys (..., N, d) by a table (..., N, 2 d) of sines and cosines, in `heads`' precision."""
    sine, cosine = table.chunk(2, dim=-1)
    if half:
        first, second = heads.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    else:
        across = torch.stack([-heads[..., 1::2], heads[..., ::2]], dim=-1).flatten(-2)
    return (heads * cosine + across * sine).to(heads.dtype)


def rotary_periods(head_width: int, base: float = 100.0) -> Tensor:
    """Return DINOv3's initial periods (d / 4,) for heads `head_width` wide: base ** (2 i / (d / 2))."""
    return base ** (torch.arange(head_width // 4) / (head_width / 4))
