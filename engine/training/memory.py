"""Estimate how much GPU memory a training needs, before it runs: what tasks share.

    estimate_of(model, images, world, activations, accumulate=1, recompute=False).total

Activations are the bytes that autograd saves in a forward pass (`engine.training.counting.Saved`), on torch's fake
tensors, so nothing is computed. Weights, gradients, AdamW's two moments, the CUDA context, library workspaces
and the allocator's rounding (`CONTEXT`, `SPARE`) are added.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from mimbench.engine.training.compiling import blocks_of

CONTEXT = 800 * 2**20  # bytes of a CUDA context and cuDNN's workspaces
SPARE = 0.10  # share of the rest: rounding, fragmentation, temporary values of the backward pass
Config = TypeVar("Config")


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU at the peak of a training step."""

    images: int  # per micro-batch
    parameters: int
    gradients: int  # including the buckets for exchanging them, if these are not the gradients themselves
    optimizer: int
    activations: int
    recompute: bool

    @property
    def total(self) -> int:
        """The sum of all parts."""
        tensors = self.parameters + self.gradients + self.optimizer + self.activations
        return CONTEXT + round(tensors * (1 + SPARE))


def estimate_of(
    model: nn.Module, images: int, world: int, activations: int, *, accumulate: int, recompute: bool, shard: bool
) -> Estimate:
    """Return the estimate for a model in single precision, trained by AdamW in `world` processes.

    With several processes, gradients live in the buckets in which they are exchanged; if micro-batches are accumulated,
    their sum lives beside them until the last micro-batch. With `shard`, a process has its share of everything, and
    beside it what is gathered at a time: two blocks and what is in no block.
    """
    weights, learned = _sizes(model.parameters())
    if shard and world > 1:
        blocks = [_sizes(block.parameters()) for block in dict.fromkeys(blocks_of(model))]
        gathered, their_gradients = (
            whole - sum(each) + 2 * max(each, default=0)
            for whole, each in zip((weights, learned), zip(*blocks, strict=True) if blocks else ((), ()), strict=True)
        )
        return Estimate(
            images=images,
            parameters=weights // world + gathered,
            gradients=learned // world + their_gradients,
            optimizer=2 * learned // world,
            activations=activations,
            recompute=recompute,
        )
    return Estimate(
        images=images,
        parameters=weights,
        gradients=learned * (2 if world > 1 and accumulate > 1 else 1),
        optimizer=2 * learned,
        activations=activations,
        recompute=recompute,
    )


def _sizes(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return the bytes of all parameters, and of those that learn."""
    sizes = [(4 * parameter.numel(), parameter.requires_grad) for parameter in parameters]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def autocast_as(precision: str) -> AbstractContextManager[object]:
    """Return the context of `compute.precision`; "auto" counts as bf16, which every recent GPU supports."""
    dtype = {"fp32": None, "fp16": torch.float16}.get(precision, torch.bfloat16)
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def first_that_fits(
    options: Sequence[tuple[str, Config]], free: int, estimate: Callable[[Config], Estimate]
) -> str | None:
    """Return the change for the first of `options` that fits into `free` bytes; each needs less than the one before."""
    fits = cache(lambda place: estimate(options[place][1]).total <= free)
    if not options or not fits(len(options) - 1):
        return None
    return options[bisect_left(range(len(options)), True, key=fits)][0]


def gib(size: int) -> str:
    """Return bytes as GiB with one decimal."""
    return f"{size / 2**30:.1f}"
