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

from mimbench.engine.run.process import autocast_dtype, derived_seed, rank_and_world, seed_all, summed
from mimbench.engine.training.distributed import data_parallel
from mimbench.engine.training.ema import Ema
from mimbench.engine.training.sharding import local_part, norm_over_processes, scale_to_norm, shard, share_of
from mimbench.engine.training.training import Training
from mimbench.engine.training.transfer import Transfer


class Stepper:
    """The model, the optimiser and what connects them; `state_dict` is what a checkpoint stores."""

    def __init__(self, training: Training, device: torch.device) -> None:
        self.training, self.device = training, device
        self.model = training.model.to(device)
        self.optimizer = training.optimizer
        self.rank, world = rank_and_world()
        self.dtype = autocast_dtype(training.compute, device)
        self.sharded = training.compute.shard and world > 1
        if self.sharded:
            require_no_scaling(self.dtype)
            shard(self.model, self.optimizer, device)
        self.forward = self.model if self.sharded else data_parallel(self.model)
        self.to_device = Transfer(device)
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
            scalars[-1]["grad_norm"] = self._clipped(training.grad_clip)
        elif (index + 1) % training.compute.log_every == 0:
            self.scaler.unscale_(self.optimizer)
            scalars[-1]["grad_norm"] = self._gradient_norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return scalars

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _gradient_norm(self) -> Tensor:
        if self.sharded:
            return norm_over_processes(self._gradients())
        return nn.utils.get_total_norm(self._gradients()).detach()

    def _clipped(self, most: float) -> Tensor:
        """Clip the gradients to a norm of at most `most`; return their norm before."""
        if not self.sharded:
            return nn.utils.clip_grad_norm_(self.parameters, most).detach()
        norm = self._gradient_norm()
        scale_to_norm(self._gradients(), norm, most)
        return norm

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
        """Delay DDP's exchange to the last micro-batch of a step; shards exchange at each, which needs less memory."""
        if last_is_to_come and isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def weights_are_finite(self) -> bool:
        """Return whether every weight is finite. Reads from the device."""
        norms = torch._foreach_norm([local_part(p.detach()) for p in self.parameters])
        finite = torch.stack([norm.float() for norm in norms]).isfinite().all()
        return bool(finite) if not self.sharded else not summed((~finite).float())

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
        self.model.load_state_dict(self._shares(state["model"], self.model.state_dict()))
        self.optimizer.load_state_dict(self._optimizer_shares(state["optimizer"]))
        for values in self.optimizer.state.values():  # on a CPU they are views of the checkpoint's file
            values.update({name: value.clone() for name, value in values.items() if _is_on_cpu(value)})
        if state["scaler"]:  # empty if the previous attempt did not run in fp16
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def _shares(self, values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """Return `values` with this process's share of each tensor that `own` has in shards."""
        if not self.sharded:
            return values
        return {
            name: share_of(value, own[name]) if isinstance(value, Tensor) and name in own else value
            for name, value in values.items()
        }

    def _optimizer_shares(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return an optimiser's state, which numbers the parameters in their order, with shares of its moments."""
        shares = {}
        for number, values in state["state"].items():
            shares[number] = self._shares(values, dict.fromkeys(values, self.parameters[number]))
        return {**state, "state": shares}


def require_no_scaling(dtype: torch.dtype | None) -> None:
    """Check that the precision needs no loss scaling, which would be decided by each share alone.

    Raises:
        ValueError: if it does.
    """
    if dtype == torch.float16:
        raise ValueError("compute.shard=true does not work with compute.precision=fp16; use bf16 or fp32")


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"
