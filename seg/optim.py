"""Learning rate and weight decay of each parameter of a segmenter, and the schedule: BEiT's rules.

The learning rate is multiplied by `layer_decay` from each block to the one before it. Class token, positions and patch
embedding are layer 0, the blocks 1 to depth, the rest (pyramid, heads) depth + 1. Vectors and biases have no weight
decay. The position table, the class token and the tables of relative positions do: the originals intend to exclude the
first two, but test for names that these parameters do not have in a segmenter.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from torch import nn

from mimbench.engine.training.optim import adamw, parameter_groups

BETAS = (0.9, 0.999)
FIRST = 1e-6  # fraction of the peak at the first step of warm-up

Schedule = Literal["beit", "mmseg", "dinov3"]
_BLOCK = re.compile(r"backbone\.(?:layers|blocks)\.(\d+)\.")
_EMBEDDED = re.compile(r"backbone\.(cls_token|reg_token|pos_embed|patch_embed|norm_pre)\b")


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a segmenter's parameter: 0 to depth + 1."""
    if match := _BLOCK.match(name):
        return int(match[1]) + 1
    return 0 if _EMBEDDED.match(name) else depth + 1


def groups(model: nn.Module, weight_decay: float, layer_decay: float, depth: int) -> list[dict[str, Any]]:
    """Return parameter groups by layer and weight decay, in order of first appearance (28 for ViT-B)."""
    return parameter_groups(
        model.named_parameters(),
        weight_decay,
        no_decay=lambda name, parameter: parameter.ndim == 1 or name.endswith(".bias"),
        layer_of=lambda name: layer_of(name, depth),
        layers=depth + 1,
        decay=layer_decay,
    )


def optimizer(model: nn.Module, lr: float, weight_decay: float, layer_decay: float, depth: int) -> torch.optim.AdamW:
    """Return AdamW on `groups`."""
    return adamw(groups(model, weight_decay, layer_decay, depth), lr, BETAS)


def learning_rate(step: int, *, peak: float, steps: int, warmup: int, schedule: Schedule) -> float:
    """Return the learning rate at `step` (0-based) of `steps`.

    beit      decreases linearly to 0 over all steps; during warm-up, times a ramp from a millionth (mmcv 1.x, BEiT)
    mmseg     a ramp to the peak, then linearly to 0 at the last step (mmsegmentation 1.x)
    dinov3    the ramp of `beit`, one step late, then a jump to half a cosine that spans all steps
    """
    if schedule == "mmseg":
        return peak * _one_after_the_other(step, steps, warmup)
    late = max(step - 1, 0) if schedule == "dinov3" else step
    if late < warmup:
        return peak * (1 - late / steps) * (1 - (1 - late / warmup) * (1 - FIRST))
    if schedule == "dinov3":
        return peak * (1 + math.cos(math.pi * step / steps)) / 2
    return peak * (1 - step / steps)


def _one_after_the_other(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return FIRST + (1 - FIRST) * step / max(warmup - 1, 1)
    return 1 - (step - warmup) / max(steps - warmup - 1, 1)
