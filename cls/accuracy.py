"""Accuracy on a validation split: every image counts exactly once, for any batch size and any number of ranks.

Each process evaluates every world-th image (`shared`), and the counts are added up. No image is repeated to fill a
batch, so several processes compute the same numbers as one. (The papers' `--dist_eval` repeats some images.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from mimbench.engine.data.batches import MapStyle, move
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import rank_and_world

# B image of a batch, C class


class Watch(Protocol):
    """An observer that receives every evaluated batch."""

    def add(self, logits_BC: Tensor, label_B: Tensor) -> None: ...


def shared(dataset: MapStyle) -> MapStyle:
    """Return this process's part of `dataset`: all of it, or every world-th item, starting at the rank's number."""
    rank, world = rank_and_world()
    return dataset if world == 1 else Subset(dataset, range(rank, len(dataset), world))  # type: ignore[arg-type]


class Tally:
    """Counts of correct predictions and the sum of losses, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.zeros(3, dtype=torch.int64, device=device)  # images, correct in top-1, correct in top-5
        self.loss = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits_BC: Tensor, label_B: Tensor) -> None:
        """Count a batch."""
        logits_BC = logits_BC.float()
        guesses = logits_BC.topk(min(5, logits_BC.shape[1])).indices == label_B[:, None]
        self.count[0] += len(label_B)
        self.count[1:] += torch.stack([guesses[:, 0].sum(), guesses.sum()])
        self.loss += F.cross_entropy(logits_BC, label_B, reduction="sum")

    def gather(self) -> None:
        """Add up the counts of all processes; afterwards every process holds the total."""
        if rank_and_world()[1] > 1:
            dist.all_reduce(self.count)
            dist.all_reduce(self.loss)

    def metrics(self, name: str) -> dict[str, float]:
        """Return `name`_top1 and `name`_top5 in percent, and `name`_loss, the mean cross-entropy."""
        images, *right = self.count.tolist()
        top1, top5 = (100 * count / images for count in right)
        return {f"{name}_top1": top1, f"{name}_top5": top5, f"{name}_loss": self.loss.item() / images}


def require_finite(metrics: Mapping[str, float], compute: Compute) -> None:
    """Check that the metrics of an evaluation are finite.

    Raises:
        ValueError: if one is NaN or infinite.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} is {value}: the logits overflowed with compute.precision={compute.precision}, or the "
                f"weights are broken; try compute.precision=bf16 or fp32"
            )


@torch.no_grad()
def accuracy(
    name: str,
    logits: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    gather: bool = False,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Return the metrics (see `Tally.metrics`) of the function `logits` over `batches` of inputs and labels.

    Args:
        name: prefix of the metrics' names.
        logits: maps inputs to logits (B, C).
        batches: inputs and labels (B,).
        device: the inputs are moved to it.
        gather: add up the counts of all processes; each process then evaluates only its part (`shared`).
        watch: receives every batch.
    """
    tally = Tally(device)
    for batch in batches:
        inputs, label_B = move(batch, device)
        found_BC = logits(inputs)
        tally.add(found_BC, label_B)
        if watch is not None:
            watch.add(found_BC, label_B)
    if gather:
        tally.gather()
    return tally.metrics(name)
