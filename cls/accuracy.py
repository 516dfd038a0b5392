"""Accuracy on a validation split: every image counts once, however the split is cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data import move

# B image of a batch, C class


class Tally:
    """Counts of right answers and a sum of losses, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.right = torch.zeros(2, dtype=torch.int64, device=device)  # first guess, first five
        self.loss = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits_BC: Tensor, label_B: Tensor) -> None:
        """Take in a batch."""
        logits_BC = logits_BC.float()
        guesses = logits_BC.topk(min(5, logits_BC.shape[1])).indices == label_B[:, None]
        self.right += torch.stack([guesses[:, 0].sum(), guesses.sum()])
        self.loss += F.cross_entropy(logits_BC, label_B, reduction="sum")
        self.images += len(label_B)

    def metrics(self, name: str) -> dict[str, float]:
        """`name`_top1 and `name`_top5 in percent, and `name`_loss, the mean cross-entropy."""
        top1, top5 = (100 * count / self.images for count in self.right.tolist())
        return {f"{name}_top1": top1, f"{name}_top5": top5, f"{name}_loss": self.loss.item() / self.images}


@torch.no_grad()
def accuracy(
    name: str, logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> dict[str, float]:
    """Metrics (see `Tally.metrics`) of the function `logits` over `batches` of inputs and labels."""
    tally = Tally(device)
    for batch in batches:
        inputs, label_B = move(batch, device)
        tally.add(logits(inputs), label_B)
    return tally.metrics(name)
