"""What golden numbers of pretraining methods were computed on: weights, images and noise that no generator draws.

The same as in `golden/crossmae_and_mae.py`, which runs the authors' code on them.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@cache
def golden() -> dict[str, Any]:
    """The authors' numbers, by case."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "crossmae_and_mae.json").read_text())
    return found


def sines(*shape: int, phase: float = 0.0) -> Tensor:
    """Images."""
    return torch.sin(0.011 * torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def golden_noise(batch: int, patches: int, phase: float = 0.0) -> Tensor:
    """Noise (batch, patches) in [0, 1)."""
    image, patch = torch.meshgrid(torch.arange(batch), torch.arange(patches), indexing="ij")
    return (0.6180339887498949 * (patch.double() + 1) + 0.37 * image + phase) % 1


def sine_filled(model: M) -> M:
    """`model` in float64 with known weights.

    Positions stay as they are; the authors' have single-precision frequencies, which is 1e-9 in the loss.
    """
    model = model.double()
    state = model.state_dict()
    for rank, name in enumerate(sorted(state)):
        if name.endswith("pos_embed"):
            continue
        value = 0.05 * torch.sin(0.37 * torch.arange(state[name].numel(), dtype=torch.float64) + 1.3 * rank)
        state[name] = value.view_as(state[name]) + float(state[name].ndim == 1 and name.endswith(".weight"))
    model.load_state_dict(state)
    return model


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """By parameter; those without a gradient are left out."""
    return {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
