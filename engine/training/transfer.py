"""Batches moved to the device beside the computation of the step before.

    to_device = Transfer(device)
    batch = to_device(batch)         # a tuple, list or dictionary of tensors

On a GPU the copy runs on a stream of its own: when the training queues a step, the GPU is still computing the one
before, so the copy from pinned memory takes none of its time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from mimbench.engine.data.batches import move


class Transfer:
    """Moves batches to `device`; on a CPU it returns them as they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Any) -> Any:
        """Return `batch` with every tensor on the device; work queued from now on waits for the copy."""
        if self.device.type == "cpu":
            return batch
        if self._stream is None:
            return move(batch, self.device)
        with torch.cuda.stream(self._stream):
            moved = move(batch, self.device)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for value in tree_leaves(moved):
            if isinstance(value, torch.Tensor) and value.is_cuda:
                value.record_stream(current)  # its memory is not used again before the step has read it
        return moved
