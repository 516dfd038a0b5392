"""An exponential moving average of a model's weights: average = decay * average + (1 - decay) * weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mimbench.engine.training.sharding import as_shard, local_part, share_of


class Ema:
    """The moving average of `model`'s parameters, or of this process's shares of them; buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema={decay} must lie in [0, 1); 0.9999 is usual for long runs")
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.weights = [local_part(parameter.detach()) for parameter in self.parameters]
        self.average = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an optimiser step to the average."""
        torch._foreach_lerp_(self.average, self.weights, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their average, bit for bit; a second call undoes it."""
        weights = [weight.clone() for weight in self.weights]
        torch._foreach_copy_(self.weights, self.average)
        torch._foreach_copy_(self.average, weights)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model the averaged weights inside the `with` block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the average of each parameter by name."""
        averages = [as_shard(average, like) for average, like in zip(self.average, self.parameters, strict=True)]
        return dict(zip(self.names, averages, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        named = zip(self.names, self.parameters, strict=True)
        torch._foreach_copy_(self.average, [local_part(share_of(state[name], like)) for name, like in named])
