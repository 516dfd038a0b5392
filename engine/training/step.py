"""One optimiser step: micro-batches, mixed precision, clipping, the update and the moving average of the weights.

Nothing here reads from the device, so the step never waits for a GPU. Every micro-batch seeds the generators from
(seed, rank, step, micro-batch): dropout is the same with and without a restart, and evaluations in between change
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mimbench.engine.run.process import autocast_dtype, derived_seed, rank_and_world, seed_all
from mimbench.engine.training.distributed import data_parallel
from mimbench.engine.training.ema import Ema
from mimbench.engine.training.training import Training
from mimbench.engine.training.transfer import Transfer


class Stepper:
    """The model, the optimiser and what connects them; `state_dict` is what a checkpoint stores."""

    def __init__(self, training: Training, device: torch.device) -> None:
        self.training, self.device = training, device
        self.model = training.model.to(device)
        self.optimizer = training.optimizer
        self.rank, _ = rank_and_world()
        self.forward = data_parallel(self.model)
        self.to_device = Transfer(device)
        self.dtype = autocast_dtype(training.compute, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.ema = Ema(self.model, training.ema) if training.ema is not None else None
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, index: int, batches: Iterator[Any]) -> list[dict[str, Tensor]]:
        """Do optimiser step `index` (0-based) on the next micro-batches; return the scalars of each, on the device."""
        training = self.training
        if training.before_step is not None:
            training.before_step(index)
        for group in self.optimizer.param_groups:
            group["lr"] = training.rate(index, group.get("lr_scale", 1.0))
        scalars = [self._micro_step(index, micro, next(batches)) for micro in range(training.compute.accumulate)]
        if training.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, training.grad_clip)
            scalars[-1]["grad_norm"] = norm.detach()
        elif (index + 1) % training.compute.log_every == 0:
            self.scaler.unscale_(self.optimizer)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            scalars[-1]["grad_norm"] = nn.utils.get_total_norm(gradients).detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return scalars

    def _micro_step(self, index: int, micro: int, batch: Any) -> dict[str, Tensor]:
        accumulate = self.training.compute.accumulate
        batch = self.to_device(batch)
        seed_all(derived_seed(self.training.seed, self.rank, index, micro))
        with self._gradients_stay_here(micro + 1 < accumulate):
            with self._autocast():
                outputs = self.forward(batch)
            loss = outputs["loss"]
            self.scaler.scale(loss / accumulate if accumulate > 1 else loss).backward()
        return {name: value.detach() for name, value in outputs.items() if value.numel() == 1}

    def _gradients_stay_here(self, last_is_to_come: bool) -> AbstractContextManager[None]:
        """Delay the gradient exchange between processes to the last micro-batch of a step."""
        if last_is_to_come and isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def weights_are_finite(self) -> bool:
        """Return whether every weight is finite. Reads from the device."""
        norms = torch._foreach_norm([p.detach() for p in self.parameters])
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model its averaged weights, if there are any, inside the `with` block."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on, except the batches."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for values in self.optimizer.state.values():  # on a CPU they are views of the checkpoint's file
            values.update({name: value.clone() for name, value in values.items() if _is_on_cpu(value)})
        if state["scaler"]:  # empty if the previous attempt did not run in fp16
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"
