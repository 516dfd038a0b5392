"""Learning-rate schedules as pure functions.

`warmup_cosine` is MAE's and CrossMAE's, `whole_cosine` and `warmup_drops` are SimMIM's, all counted in (fractional)
epochs; `warmup_steps` is ViTDet's, counted in optimiser steps. A parameter group's `lr_scale` multiplies the returned
rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(t: float, peak: float, minimum: float, warmup: float, total: float, start: float = 0.0) -> float:
    """Return the rate at `t`: linear from `start` to `peak` over `warmup`, then half a cosine to `minimum` at `total`.

    `t`, `warmup` and `total` have the same unit, epochs in the papers; the first step (t = 0) has rate `start`.
    """
    if t < warmup:
        return start + (peak - start) * t / warmup
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * (t - warmup) / (total - warmup)))


def whole_cosine(t: float, peak: float, minimum: float, warmup: float, total: float, start: float) -> float:
    """Return the rate at `t`: linear from `start` to `peak` over `warmup`, then a half cosine that starts at t = 0.

    This is SimMIM's, from timm's scheduler: after warm-up the rate is slightly below the peak.
    """
    if t < warmup:
        return start + (peak - start) * t / warmup
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * t / total))


def warmup_drops(t: float, peak: float, warmup: float, start: float, drops: Sequence[float]) -> float:
    """Return the rate at `t`: linear from `start` to `peak` over `warmup`, then `peak`, divided by 10 at each drop."""
    if t < warmup:
        return start + (peak - start) * t / warmup
    return peak * 0.1 ** sum(t >= drop for drop in drops)


def warmup_steps(
    step: int, peak: float, warmup_steps: float, factor: float, milestones: Sequence[int], gamma: float
) -> float:
    """Return the rate at `step`: linear from `factor` x `peak` over `warmup_steps`, then `peak`, times `gamma` at each
    milestone.

    ViTDet: factor .001 over 250 steps, gamma .1 at 8/9 and 26/27 of the training (detectron2's lazy configs).
    """
    rate = peak * gamma ** sum(step >= milestone for milestone in milestones)
    if step < warmup_steps:
        rate *= factor + (1.0 - factor) * step / warmup_steps
    return rate
