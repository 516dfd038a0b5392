"""Match anchors or regions to objects, and sample those that a loss is computed on.

Equal to detectron2's `Matcher` and `subsample_labels`, with draws from torch's generator in the same order, so both
take the same sample with the same seed.
"""

# T object, N anchor or region

from __future__ import annotations

import torch
from torch import Tensor

BACKGROUND, IGNORED, FOREGROUND = 0, -1, 1


def match(overlap_TN: Tensor, low: float, high: float, keep_best: bool) -> tuple[Tensor, Tensor]:
    """Return the object with the highest IoU for each candidate, and each candidate's label.

    Args:
        overlap_TN: intersection over union of objects and candidates.
        low, high: overlap below `low` is BACKGROUND, from `high` on FOREGROUND, between them IGNORED.
        keep_best: the candidates with the highest overlap with an object are FOREGROUND at any overlap (and are still
            matched to the object that they overlap most).

    Returns:
        Indices of objects (N,), all 0 without objects, and labels (N,).
    """
    if not len(overlap_TN):
        nothing = overlap_TN.new_zeros(overlap_TN.shape[1], dtype=torch.int64)
        return nothing, nothing + BACKGROUND
    best_N, object_N = overlap_TN.max(dim=0)
    label_N = torch.full_like(object_N, IGNORED)
    label_N[best_N < low] = BACKGROUND
    label_N[best_N >= high] = FOREGROUND
    if keep_best:
        is_best_TN = overlap_TN == overlap_TN.max(dim=1, keepdim=True).values
        label_N[is_best_TN.any(dim=0)] = FOREGROUND
    return object_N, label_N


def sample(label_N: Tensor, count: int, positive: float) -> tuple[Tensor, Tensor]:
    """Return indices of at most `count * positive` random FOREGROUND candidates, and BACKGROUND ones up to `count`."""
    foreground = (label_N == FOREGROUND).nonzero()[:, 0]
    background = (label_N == BACKGROUND).nonzero()[:, 0]
    foregrounds = min(len(foreground), int(count * positive))
    backgrounds = min(len(background), count - foregrounds)
    chosen = torch.randperm(len(foreground), device=label_N.device)[:foregrounds]
    others = torch.randperm(len(background), device=label_N.device)[:backgrounds]
    return foreground[chosen], background[others]
