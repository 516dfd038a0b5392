"""Work that the first rank does for all: what the others send it, and how they wait for it.

    group = patient_group()                                   # all ranks, once
    arrays = joined_at_first({"scores": scores}, group)       # rank 0: all ranks' arrays; the others: None
    metrics = computed_by_first(lambda: evaluate(arrays), group)   # every rank

The group is gloo's, beside NCCL: arrays stay in main memory, and a wait of minutes is no time-out (NCCL's is ten).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mimbench.engine.run.process import rank_and_world

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # a dead rank 0 closes its connections, which ends the wait at once
MESSAGE = 1 << 28  # bytes of one message


def patient_group() -> dist.ProcessGroup | None:
    """Return a group of all ranks, which must all call this, to wait in for long; None for a single process."""
    if rank_and_world()[1] == 1:
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


def joined_at_first(
    arrays: Mapping[str, NDArray[Any]], group: dist.ProcessGroup | None
) -> dict[str, NDArray[Any]] | None:
    """Return on rank 0 each array concatenated over the ranks, in their order, along the first axis; None elsewhere.

    Rank 0 receives into the result, so it needs no memory beyond the result and its own arrays.

    Args:
        arrays: the same names, types and shapes beyond the first axis on every rank.
        group: of `patient_group`.
    """
    if group is None:
        return dict(arrays)
    rank, world = rank_and_world()
    lengths: list[Any] = [None] * world
    dist.all_gather_object(lengths, {name: len(array) for name, array in arrays.items()}, group=group)
    if rank:
        for array in arrays.values():
            for part in _messages(np.ascontiguousarray(array)):
                dist.send(part, dst=0, group=group)
        return None
    joined = {
        name: np.empty((sum(each[name] for each in lengths), *array.shape[1:]), array.dtype)
        for name, array in arrays.items()
    }
    for name, array in arrays.items():
        joined[name][: len(array)] = array
    begins = lengths[0]
    for source in range(1, world):
        ends = {name: begins[name] + lengths[source][name] for name in arrays}
        for name in arrays:
            for part in _messages(joined[name][begins[name] : ends[name]]):
                dist.recv(part, src=source, group=group)
        begins = ends
    return joined


def _messages(array: NDArray[Any]) -> list[torch.Tensor]:
    """Return the bytes of a contiguous array as tensors that share its memory, none of them empty."""
    return [part for part in torch.from_numpy(array.reshape(-1).view(np.uint8)).split(MESSAGE) if len(part)]


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
