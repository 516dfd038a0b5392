"""What a stage hands to the training loop: `Training`, live objects and the functions that it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute


@dataclass
class Training:
    """What a stage hands over: live objects, the model and the optimiser not yet on any device."""

    model: nn.Module  # model(batch) -> {"loss": scalar, ...}; "loss" is minimised, other scalars are logged
    optimizer: Optimizer  # groups may carry "lr_scale"
    batches: Batches
    steps: int  # optimiser steps in all
    learning_rate: Callable[[int], float]  # optimiser step (0-based) -> rate before each group's lr_scale
    compute: Compute
    seed: int
    offset: Callable[[int], float] | None = None  # added to every group's rate, whatever its lr_scale
    epoch_of: Callable[[int], float] | None = None  # optimiser steps done -> epochs; by default from the batches
    before_step: Callable[[int], None] | None = None  # called in every process with the step (0-based) that begins
    grad_clip: float | None = None  # largest norm of the gradient
    ema: float | None = None  # decay of an average of the weights; evaluated and returned in their place
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None  # model in eval mode, without gradients
    evaluate_every: int | None = None  # optimiser steps; always at the end as well
    keep: Callable[[nn.Module, int, dict[str, float]], None] | None = None  # after it, in one process: step, metrics
    draw: Callable[[], dict[str, Path]] | None = None  # writes PNG files after an evaluation, in one process: by name
    extra_state: dict[str, Any] = field(default_factory=dict)  # more objects with state_dict and load_state_dict

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a training of {self.steps} steps: ask for at least one step or epoch")
        if self.batches.accumulate != self.compute.accumulate:
            raise ValueError(
                f"batches are made for accumulate={self.batches.accumulate}, "
                f"but compute.accumulate={self.compute.accumulate}"
            )

    def rate(self, step: int, scale: float = 1.0) -> float:
        """The learning rate at `step` (0-based) of a group whose `lr_scale` is `scale`."""
        return self.learning_rate(step) * scale + (0.0 if self.offset is None else self.offset(step))

    def epoch(self, step: int) -> float:
        """Epochs after `step` optimiser steps."""
        if self.epoch_of is not None:
            return self.epoch_of(step)
        return step * self.compute.accumulate / len(self.batches)
