"""Batch norm with the statistics of the whole batch over all processes, on GPUs and on CPUs.

torch's SyncBatchNorm does not support CPUs, and a module that contains it cannot be distributed over CPU processes. So
this module sums over all processes; a single process uses torch's plain batch norm.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

from mimbench.engine.run.process import rank_and_world


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm of maps (B, C, h, w) with statistics over B, h, w and all processes in training."""

    gathers = True  # running statistics are equal in all processes (engine/training/distributed.py)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise, scale and shift maps (B, C, h, w)."""
        if not self.training or rank_and_world()[1] == 1:
            normalised: Tensor = super().forward(maps)
            return normalised
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return self._over_processes(maps if maps.dtype == torch.float64 else maps.float()).to(maps.dtype)

    def _over_processes(self, maps_BChw: Tensor) -> Tensor:
        """Compute the mean, then the deviation, in two passes, to avoid cancellation."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        count = maps_BChw.new_tensor(maps_BChw.numel() // maps_BChw.shape[1])
        dist.all_reduce(count)
        mean_C = dist_nn.all_reduce(maps_BChw.sum((0, 2, 3))) / count
        centred = maps_BChw - mean_C[:, None, None]
        variance_C = dist_nn.all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_C.to(self.running_mean), self.momentum)
            unbiased = variance_C * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        normalised = centred * (variance_C + self.eps).rsqrt()[:, None, None]
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]
