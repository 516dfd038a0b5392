"""Weights and images by rule, so that a golden file holds an original's names, shapes and outputs, and no weights.

A weight's value depends on its place among all names of its state dictionary, on its element's place, and on whether it
is the scale of a norm. Position tables that a method fixes keep the original's formula where a case says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def filled(
    shapes: Mapping[str, Sequence[int]], kept: Mapping[str, Tensor] | None = None, swing: float = 0.05
) -> dict[str, Tensor]:
    """A state dictionary in float32: element j of the i-th name is swing sin(.37 j + 1.3 i), plus 1 in a norm scale."""
    rank = {name: place for place, name in enumerate(sorted(shapes))}
    state = {}
    for name, shape in shapes.items():
        element = torch.arange(math.prod(shape), dtype=torch.float64)
        values = swing * torch.sin(0.37 * element + 1.3 * rank[name])
        if len(shape) == 1 and name.endswith(".weight"):
            values += 1
        state[name] = values.reshape(tuple(shape)).float()
    return {**state, **(kept or {})}


def image(rows: int, columns: int) -> Tensor:
    """An image (1, 3, rows, columns) in float64: sin(.011 k) at the k-th of its numbers."""
    return torch.sin(0.011 * torch.arange(3 * rows * columns, dtype=torch.float64)).view(1, 3, rows, columns)


def summary(tokens: Tensor, first: int) -> dict[str, Any]:
    """What is kept of tokens (1, T, D) that begin with `first` which are no patch: enough to tell any two apart."""
    patches = tokens[0, first:]
    kept = {
        "patches": patches[:, :3].flatten(),
        "mean": patches.mean(dim=0)[::4],
        "square": patches.square().sum()[None],
    }
    if first:
        kept["class"] = tokens[0, 0, ::4]
    return {name: [float(f"{value:.12g}") for value in values.tolist()] for name, values in kept.items()}
