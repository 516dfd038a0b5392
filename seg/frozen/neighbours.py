"""k-NN over patches, with every k and both distances from one search, and CAPI's mean IoU.

Each pixel of a patch takes the most frequent label, at that pixel of the patch, of the k nearest training patches. A
smaller k looks at the first of the same neighbours. For cosine distance features are scaled to unit length, after which
the nearest by L2 are the nearest by cosine.

Shapes: N training patch, M test patch, D feature, P pixel of a patch, k neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["cosine", "L2"]
QUERIES, TRAINING = 1024, 65_536  # patches compared at a time


def learnable(labels_NP: Tensor, ignore: Sequence[int]) -> Tensor:
    """Which training patches (N,) are learned from: those whose most frequent label is not to be ignored."""
    modal = labels_NP.mode(dim=1).values
    return ~torch.isin(modal, torch.tensor(list(ignore), dtype=modal.dtype, device=modal.device))


def nearest_patches(query_MD: Tensor, train_ND: Tensor, most: int, distance: Distance) -> Tensor:
    """The `most` nearest training patches of each query, nearest first: int64 (M, most)."""
    if distance == "cosine":
        query_MD, train_ND = F.normalize(query_MD, dim=1), F.normalize(train_ND, dim=1)
    most = min(most, len(train_ND))
    found = [_nearest(queries, train_ND, most) for queries in query_MD.split(QUERIES)]
    return torch.cat(found) if found else torch.empty(0, most, dtype=torch.int64)


def _nearest(query_MD: Tensor, train_ND: Tensor, most: int) -> Tensor:
    """Block by block, so that memory does not grow with the product of the two."""
    best: Tensor | None = None
    index: Tensor | None = None
    for start in range(0, len(train_ND), TRAINING):
        block = train_ND[start : start + TRAINING]
        closeness = torch.addmm(-0.5 * block.square().sum(1), query_MD, block.mT)  # falls with the distance
        value, place = closeness.topk(min(most, len(block)), dim=1)
        place = place + start
        if best is not None and index is not None:
            value, place = torch.cat([best, value], 1), torch.cat([index, place], 1)
        value, order = value.topk(min(most, value.shape[1]), dim=1)
        best, index = value, place.gather(1, order)
    assert index is not None
    return index


def vote(labels_NP: Tensor, neighbours_Mk: Tensor) -> Tensor:
    """The most frequent label of the neighbours at each pixel, the smallest of equals: (M, P)."""
    return labels_NP[neighbours_Mk].mode(dim=1).values


def capi_miou(predicted: Tensor, labels: Tensor, ignore: Sequence[int]) -> float:
    """The mean Jaccard index of all labels that are there or predicted, 0..1, without pixels whose label is ignored.

    A predicted label that is itself to be ignored stays a class, and lowers the mean: it cannot be compared with the
    mIoU of `seg.evaluation.metric`.

    Raises:
        ValueError: if every pixel is ignored.
    """
    known = ~torch.isin(labels, torch.tensor(list(ignore), dtype=labels.dtype, device=labels.device))
    if not known.any():
        raise ValueError("every pixel of the validation label maps is ignored, so that there is nothing to measure")
    pairs = labels[known].long() * 256 + predicted[known].long()
    counts = torch.bincount(pairs, minlength=256 * 256).view(256, 256).double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((counts.diagonal() / union)[union > 0].mean())
