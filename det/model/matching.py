"""Match anchors or regions to objects, and sample those that a loss is computed on.

Equal to detectron2's `Matcher` and `subsample_labels`, with draws from torch's generator in the same order, so both
take the same sample with the same seed.
"""

# T object, N anchor or region

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mimbench.det.model.host import places

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
    label_N = torch.where(best_N < low, BACKGROUND, torch.full_like(object_N, IGNORED))
    label_N = torch.where(best_N >= high, FOREGROUND, label_N)
    if keep_best:
        is_best_TN = overlap_TN == overlap_TN.max(dim=1, keepdim=True).values
        label_N = torch.where(is_best_TN.any(dim=0), FOREGROUND, label_N)
    return object_N, label_N


def occurrences(label_N: Tensor) -> Tensor:
    """Return how many candidates are FOREGROUND and how many BACKGROUND, (2,) on the device."""
    return torch.stack([(label_N == FOREGROUND).sum(), (label_N == BACKGROUND).sum()])


def sample(label_N: Tensor, count: int, positive: float, found: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return indices of at most `count * positive` random FOREGROUND candidates, and BACKGROUND ones up to `count`.

    `found` are the `occurrences` of both; the draws need them on the host, which reads them for all images at once.
    """
    foreground = places(label_N == FOREGROUND, found[0])
    background = places(label_N == BACKGROUND, found[1])
    foregrounds = min(len(foreground), int(count * positive))
    backgrounds = min(len(background), count - foregrounds)
    chosen = torch.randperm(len(foreground), device=label_N.device)[:foregrounds]
    others = torch.randperm(len(background), device=label_N.device)[:backgrounds]
    return foreground[chosen], background[others]
