"""Rates, peaks and distances on a device, for benchmarks/gpu.py and its parts."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor


def wait(device: torch.device) -> None:
    """Wait for everything queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Callable[[], object], seconds: float, device: torch.device, warm: int = 3) -> float:
    """Return calls per second of `work` over at least `seconds`, after `warm` calls."""
    for _ in range(warm):
        work()
    wait(device)
    begun, done = time.perf_counter(), 0
    while not done or time.perf_counter() - begun < seconds:
        work()
        done += 1
        if done % 8 == 0:
            wait(device)  # else a GPU's queue would be counted as done
    wait(device)
    return done / (time.perf_counter() - begun)


def peak(device: torch.device) -> float | None:
    """Return the GiB at the peak since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    found = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return found


def apart(found: Tensor, wanted: Tensor) -> float:
    """Return the distance of `found` from `wanted`, relative to the norm of `wanted`."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))
