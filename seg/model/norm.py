"""Batch norm over all processes: the statistics of the whole batch, on GPUs and on CPUs.

torch's SyncBatchNorm refuses a CPU. Where it does, the same is computed here from sums over all processes, so that two
processes on CPUs give what one gives for the whole batch. A single process takes torch's plain batch norm.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.engine.run.process import rank_and_world


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm of maps (B, C, h, w) with statistics over B, h, w and all processes in training."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised, scaled and shifted maps (B, C, h, w)."""
        alone = not self.training or rank_and_world()[1] == 1
        if not alone and maps.is_cuda:
            synced: Tensor = super().forward(maps)
            return synced
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        if alone:
            momentum = 0.0 if self.momentum is None else self.momentum
            return F.batch_norm(
                maps, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
            )
        return self._over_processes(maps)

    def _over_processes(self, maps_BChw: Tensor) -> Tensor:
        count = torch.tensor(float(maps_BChw.numel() // maps_BChw.shape[1]), dtype=maps_BChw.dtype)
        dist.all_reduce(count)
        mean_C = dist_nn.all_reduce(maps_BChw.sum((0, 2, 3))) / count
        centred = maps_BChw - mean_C[:, None, None]
        variance_C = dist_nn.all_reduce(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean_C.to(self.running_mean), self.momentum)
            unbiased = variance_C * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        normalised = centred * (variance_C + self.eps).rsqrt()[:, None, None]
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]
