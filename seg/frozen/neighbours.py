"""k-NN over patches, with one search for every k and distance, and CAPI's mean IoU.

Each pixel of a patch gets the most frequent label at the same pixel of the k nearest training patches. A smaller k uses
the first of the same neighbours.

Shapes: N training patch, M test patch, D feature, P pixel of a patch, k neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["cosine", "L2"]
QUERIES, TRAINING = 1024, 65_536  # patches compared at a time


def learnable(labels_NP: Tensor, ignore: Sequence[int]) -> Tensor:
    """Return which training patches (N,) are used: those whose most frequent label is not ignored."""
    modal = labels_NP.mode(dim=1).values
    return ~torch.isin(modal, torch.tensor(list(ignore), dtype=modal.dtype, device=modal.device))


def nearest_patches(
    query_MD: Tensor, train_ND: Tensor, most: int, distances: Sequence[Distance]
) -> dict[Distance, Tensor]:
    """Return the `most` nearest training patches of each query by each distance, nearest first: int64 (M, most).

    The distances share one product of queries and patches, which is nearly all of the work.
    """
    most = min(most, len(train_ND))
    found = [_nearest(queries, train_ND, most, distances) for queries in query_MD.split(QUERIES)]
    return {distance: torch.cat([one[distance] for one in found]) for distance in distances}


def _nearest(query_MD: Tensor, train_ND: Tensor, most: int, distances: Sequence[Distance]) -> dict[Distance, Tensor]:
    """Search block by block, so that memory does not grow with the product of the two sizes."""
    best: dict[Distance, tuple[Tensor, Tensor]] = {}  # closeness and index
    for start in range(0, len(train_ND), TRAINING):
        block = train_ND[start : start + TRAINING]
        product, squared_N = query_MD @ block.mT, block.square().sum(1)
        for distance in distances:
            value, place = _closeness(product, squared_N, distance).topk(min(most, len(block)), dim=1)
            place = place + start
            if distance in best:
                value, place = torch.cat([best[distance][0], value], 1), torch.cat([best[distance][1], place], 1)
            value, order = value.topk(min(most, value.shape[1]), dim=1)
            best[distance] = value, place.gather(1, order)
    return {distance: index for distance, (_, index) in best.items()}


def _closeness(product_MN: Tensor, squared_N: Tensor, distance: Distance) -> Tensor:
    """Return a number (M, N) that orders the patches of each query as the distance does, nearest highest."""
    if distance == "cosine":
        return product_MN / squared_N.sqrt().clamp(min=1e-12)
    return product_MN - 0.5 * squared_N


def vote(labels_NP: Tensor, neighbours_Mk: Tensor) -> Tensor:
    """Return the most frequent label of the neighbours at each pixel, the smallest if equal: (M, P)."""
    return labels_NP[neighbours_Mk].mode(dim=1).values


def capi_miou(predicted: Tensor, labels: Tensor, ignore: Sequence[int]) -> float:
    """Return the mean Jaccard index, 0..1, of all present or predicted labels, without ignored pixels.

    A predicted label that is in `ignore` counts as a class and lowers the mean, so this differs from the mIoU of
    `seg.evaluation.metric`.

    Raises:
        ValueError: if every pixel is ignored.
    """
    known = ~torch.isin(labels, torch.tensor(list(ignore), dtype=labels.dtype, device=labels.device))
    if not known.any():
        raise ValueError("all pixels of the validation or held-out label maps are ignored; nothing can be measured")
    pairs = labels[known].long() * 256 + predicted[known].long()
    counts = torch.bincount(pairs, minlength=256 * 256).view(256, 256).double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((counts.diagonal() / union)[union > 0].mean())
