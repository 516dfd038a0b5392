"""Work that the first rank does for all: what the others send it, and how they wait for it.

    group = patient_group()                                   # all ranks, once
    arrays = joined_at_first({"scores": pieces}, group)       # rank 0: all ranks' pieces as one; the others: None
    metrics = computed_by_first(lambda: evaluate(arrays), group)   # every rank

The group is gloo's, beside NCCL: arrays stay in main memory, and a wait of minutes is no time-out (NCCL's is ten).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mimbench.engine.run.process import rank_and_world

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # a dead rank 0 closes its connections, which ends the wait at once
MESSAGE = 1 << 24  # bytes of one message


def patient_group() -> dist.ProcessGroup | None:
    """Return a group of all ranks, which must all call this, to wait in for long; None for a single process."""
    if rank_and_world()[1] == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group


def joined_at_first(
    pieces: Mapping[str, Sequence[NDArray[Any]]], group: dist.ProcessGroup | None
) -> dict[str, NDArray[Any]] | None:
    """Return on rank 0 the pieces of all ranks, in their order, concatenated along the first axis; None elsewhere.

    The other ranks copy `MESSAGE` bytes at a time, and rank 0 receives into the result.

    Args:
        pieces: of each array, at least one; names, types and shapes beyond the first axis are the same on every rank.
        group: of `patient_group`.
    """
    if group is None:
        return {name: np.concatenate(each) for name, each in pieces.items()}
    rank, world = rank_and_world()
    messages = {name: _messages(each) for name, each in pieces.items()}
    lengths: list[Any] = [None] * world
    rows = {name: [sum(map(len, message)) for message in each] for name, each in messages.items()}
    dist.all_gather_object(lengths, rows, group=group)
    if rank:
        for message in (message for each in messages.values() for message in each):
            dist.send(_bytes(np.concatenate(message)), dst=0, group=group)
        return None
    joined = {}
    for name, each in pieces.items():
        total = sum(sum(of_rank[name]) for of_rank in lengths)
        joined[name] = np.empty((total, *each[0].shape[1:]), each[0].dtype)
        np.concatenate(each, out=joined[name][: sum(rows[name])])
    filled = {name: sum(each) for name, each in rows.items()}
    for source in range(1, world):
        for name, counts in lengths[source].items():
            for count in counts:
                part = joined[name][filled[name] : filled[name] + count]
                dist.recv(_bytes(part), src=source, group=group)
                filled[name] += count
    return joined


def _messages(pieces: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
    """Return the pieces that are not empty in groups of at most `MESSAGE` bytes, or of a single larger piece."""
    groups: list[list[NDArray[Any]]] = []
    held = MESSAGE
    for piece in pieces:
        if piece.nbytes:
            if held + piece.nbytes > MESSAGE:
                groups.append([])
                held = 0
            groups[-1].append(piece)
            held += piece.nbytes
    return groups


def _bytes(array: NDArray[Any]) -> torch.Tensor:
    """Return the bytes of a contiguous array as a tensor that shares its memory."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


def computed_by_first(compute: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Return in every rank what `compute` returns on rank 0, which alone calls it; a small object.

    Raises:
        ValueError, RuntimeError: in every rank, if it fails there.
    """
    if group is None:
        return compute()
    said: list[Any] = [None, None]
    failed: Exception | None = None
    if rank_and_world()[0] == 0:
        try:
            said[0] = compute()
        except Exception as error:
            failed = error
            said[1] = (isinstance(error, ValueError), str(error))
    dist.broadcast_object_list(said, src=0, group=group)
    if failed is not None:
        raise failed
    if said[1] is not None:
        is_value_error, text = said[1]
        raise (ValueError if is_value_error else RuntimeError)(text)
    value: T = said[0]
    return value
