"""`Training`: the objects and functions that a stage passes to the training loop."""

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
    """What a stage passes to the training loop; the model and the optimiser are not on any device yet."""

    model: nn.Module  # model(batch) -> {"loss": scalar, ...}; "loss" is minimised, other scalars are logged
    optimizer: Optimizer  # groups may carry "lr_scale"
    batches: Batches
    steps: int  # total optimiser steps
    learning_rate: Callable[[int], float]  # optimiser step (0-based) -> rate before each group's lr_scale
    compute: Compute
    seed: int
    offset: Callable[[int], float] | None = None  # added to every group's rate, not scaled by its lr_scale
    epoch_of: Callable[[int], float] | None = None  # optimiser steps done -> epochs; by default from the batches
    before_step: Callable[[int], None] | None = None  # called in every process with the step (0-based) that starts
    grad_clip: float | None = None  # largest norm of the gradient
    ema: float | None = None  # decay of the weights' moving average, which is then evaluated and returned
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None  # model in eval mode, without gradients
    evaluate_every: int | None = None  # optimiser steps; also at the end
    keep: Callable[[nn.Module, int, dict[str, float]], None] | None = None  # after `evaluate`, on rank 0: step, metrics
    draw: Callable[[], dict[str, Path]] | None = None  # after an evaluation, on rank 0: writes PNG files, by name
    extra_state: dict[str, Any] = field(default_factory=dict)  # other objects with state_dict and load_state_dict

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1: ask for at least one step or epoch")
        if self.batches.accumulate != self.compute.accumulate:
            raise ValueError(
                f"the batches were made with accumulate={self.batches.accumulate}, "
                f"but compute.accumulate={self.compute.accumulate}"
            )

    def rate(self, step: int, scale: float = 1.0) -> float:
        """Return the learning rate at `step` (0-based) of a group whose `lr_scale` is `scale`."""
        return self.learning_rate(step) * scale + (0.0 if self.offset is None else self.offset(step))

    def epoch(self, step: int) -> float:
        """Return the epochs after `step` optimiser steps."""
        if self.epoch_of is not None:
            return self.epoch_of(step)
        return step * self.compute.accumulate / len(self.batches)
