"""Exact search for the nearest training images of each query, with little memory.

Similarities are computed block by block, in float32. Of each block only the similarities above a query's current k-th
best are kept. Only one block of the training features is in memory at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.engine.run.bar import track

# Q query, N training images, T training images of a block, K neighbours, S survivors of a block, M all survivors,
# D features

QUERIES = 1024  # queries per block
TRAINS = 16_384  # training images per block: 64 MiB of similarities


def nearest(query_QD: Tensor, train_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` most cosine-similar rows of `train_ND` for each query: values and indices (Q, K), best first.

    Neither needs unit length; `train_ND` may have half precision, be on another device or be memory-mapped. Of equal
    similarities the smaller index comes first. `train_ND` must have at least `k` rows.
    """
    assert k <= len(train_ND)
    query_QD = F.normalize(query_QD.float(), dim=1)
    found = [_Found.none(part_QD) for part_QD in query_QD.split(QUERIES)]
    columns = min(
        TRAINS, len(train_ND)
    )  # memory is allocated once; per block it would cost a tenth of the products' time
    held_TD, room = query_QD.new_empty(columns, train_ND.shape[1]), query_QD.new_empty(QUERIES, columns)
    starts = range(0, len(train_ND), TRAINS)
    for start in track(starts, "finding neighbours in blocks", len(starts)):
        train_TD = _of_unit_length(train_ND[start : start + TRAINS], held_TD)
        for place, part_QD in enumerate(query_QD.split(QUERIES)):
            out = room.view(-1)[: len(part_QD) * len(train_TD)].view(len(part_QD), len(train_TD))
            found[place] = found[place].joined(torch.mm(part_QD, train_TD.T, out=out), start, k)
    return torch.cat([best.similarity_QK for best in found]), torch.cat([best.index_QK for best in found])


def _of_unit_length(features_TD: Tensor, held_TD: Tensor) -> Tensor:
    """Compute `F.normalize` in float32 and write it into `held_TD`."""
    unit_TD = held_TD[: len(features_TD)].copy_(features_TD)
    return unit_TD.div_(torch.linalg.vector_norm(unit_TD, dim=1, keepdim=True).clamp_min_(1e-12))


class _Found:
    """The nearest training images so far, best first, equal ones by index."""

    def __init__(self, similarity_QK: Tensor, index_QK: Tensor) -> None:
        self.similarity_QK, self.index_QK = similarity_QK, index_QK

    @classmethod
    def none(cls, query_QD: Tensor) -> _Found:
        """Nothing yet."""
        index = torch.empty(len(query_QD), 0, dtype=torch.long, device=query_QD.device)
        return cls(query_QD.new_empty(len(query_QD), 0), index)

    def joined(self, similarity_QT: Tensor, start: int, k: int) -> _Found:
        """Return the best after adding the similarities to the training images from `start` on."""
        value_QS, index_QS = _survivors(similarity_QT, self._bar(similarity_QT, k), start)
        value = torch.cat([self.similarity_QK, value_QS], 1)
        value, order = value.sort(dim=1, descending=True, stable=True)
        index = torch.cat([self.index_QK, index_QS], 1).gather(1, order[:, :k])
        return _Found(value[:, :k].contiguous(), index)

    def _bar(self, similarity_QT: Tensor, k: int) -> Tensor:
        """Return the threshold (Q, 1) that a similarity must exceed to be among the best `k`; equal is not enough."""
        if self.similarity_QK.shape[1] == k:
            return self.similarity_QK[:, -1:]
        least = similarity_QT.topk(min(k, similarity_QT.shape[1])).values[:, -1:]
        return least.nextafter(torch.full_like(least, -torch.inf))


def _survivors(similarity_QT: Tensor, bar_Q1: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Return the similarities above the bar and their training images' indices (Q, S), in order, padded with -inf."""
    row_M, column_M = (similarity_QT > bar_Q1).nonzero(as_tuple=True)
    count_Q = torch.bincount(row_M, minlength=len(similarity_QT))
    place_M = torch.arange(len(row_M), device=row_M.device) - (count_Q.cumsum(0) - count_Q)[row_M]
    most = int(count_Q.max()) if len(row_M) else 0
    value_QS = similarity_QT.new_full((len(similarity_QT), most), -torch.inf)
    index_QS = torch.zeros(len(similarity_QT), most, dtype=torch.long, device=row_M.device)
    value_QS[row_M, place_M] = similarity_QT[row_M, column_M]
    index_QS[row_M, place_M] = column_M + start
    return value_QS, index_QS
