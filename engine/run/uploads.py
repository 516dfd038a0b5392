"""Python's numbers as tensors on the device, without making the host wait for it.

`torch.tensor(values, device="cuda")` copies from pageable memory, which waits for everything queued on the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def uploaded(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor, copied behind what the device is doing."""
    made = torch.tensor(values, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor that is made once and shared, so it must not be written to."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        return torch.tensor(values, dtype=dtype, device=device)
