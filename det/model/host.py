"""What the host reads from the device, and sends to it, without making either wait more than it must.

Each `read` makes the host wait until the device has done everything queued, and then the device waits for the host. A
training step reads three times and inference four times, for any number of images; the NMS kernel itself waits once for
each image (tests/det/test_waits.py counts them).
"""

# N entry of a mask

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mimbench.engine.run import uploads


def read(values: Sequence[Tensor]) -> list[Any]:
    """Return the values of tensors of one shape as nested lists, in one wait for the device."""
    return torch.stack(list(values)).tolist() if values else []


def uploaded(values: Any, like: Tensor) -> Tensor:
    """Return numbers as a tensor with type and device of `like`."""
    return uploads.uploaded(values, like.dtype, like.device)


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return `values` as a tensor with type and device of `like`; made once, so it must not be written to."""
    return uploads.constant(values, like.dtype, like.device)


def places(mask: Tensor, count: int) -> Tensor:
    """Return the flat indices of the `count` true entries of a mask, ascending: `nonzero` without its wait."""
    mask_N = mask.flatten()
    if count == len(mask_N):
        return torch.arange(count, device=mask.device)
    slot_N = torch.where(mask_N, mask_N.cumsum(0) - 1, count)  # false entries share one slot, which is dropped
    found = slot_N.new_zeros(count + 1).scatter_(0, slot_N, torch.arange(len(mask_N), device=mask.device))
    return found[:count]


def consecutive(starts: Sequence[int], counts: Sequence[int], like: Tensor) -> Tensor:
    """Return start, start + 1, ... (count of them) for each pair, as indices on the device of `like`."""
    runs = [torch.arange(start, start + count, device=like.device) for start, count in zip(starts, counts, strict=True)]
    return torch.cat(runs) if runs else torch.arange(0, device=like.device)


def leaving(values: Tensor) -> Callable[[], Tensor]:
    """Start to copy `values` to main memory; return the function that waits for the copy and returns it."""
    copied = values.to("cpu", non_blocking=True)
    if not values.is_cuda:
        return lambda: copied
    event = torch.cuda.Event()
    event.record()

    def wait() -> Tensor:
        event.synchronize()
        return copied

    return wait
