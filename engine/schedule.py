"""Learning-rate schedules as pure functions.

`warmup_cosine` is MAE's and CrossMAE's, counted in (fractional) epochs; `warmup_steps` is ViTDet's, counted in
optimiser steps. A parameter group's `lr_scale` multiplies what they return.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(t: float, peak: float, minimum: float, warmup: float, total: float) -> float:
    """Linear from 0 to `peak` over `warmup`, then half a cosine down to `minimum` at `total`.

    `t`, `warmup` and `total` are in one unit, epochs in the papers; the first step (t = 0) has rate 0.
    """
    if t < warmup:
        return peak * t / warmup
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * (t - warmup) / (total - warmup)))


def warmup_steps(
    step: int, peak: float, warmup_steps: float, factor: float, milestones: Sequence[int], gamma: float
) -> float:
    """Linear from `factor` x `peak` over `warmup_steps`, then `peak`, times `gamma` from each milestone on.

    ViTDet: factor .001 over 250 steps, gamma .1 at 8/9 and 26/27 of the training (detectron2's lazy configs).
    """
    rate = peak * gamma ** sum(step >= milestone for milestone in milestones)
    if step < warmup_steps:
        rate *= factor + (1.0 - factor) * step / warmup_steps
    return rate
