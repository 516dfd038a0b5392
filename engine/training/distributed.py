"""Data-parallel training: every process has the whole model, and gradients are averaged once in each optimiser step.

    forward = data_parallel(model)        # `model` itself, if there is a single process

Gradients are views of the buckets that are exchanged, so no copy of them is kept. Constant buffers are not sent: they
are equal in all processes. `static_graph=True` of torch is not used: it exchanges the same as long as no process looks
for unused parameters (counted), and a step that leaves out a part of the model would be an error.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mimbench.engine.run.process import rank_and_world


def data_parallel(model: nn.Module) -> nn.Module:
    """Return `model` for the forward pass: wrapped if there are several processes, else itself."""
    if rank_and_world()[1] == 1:
        return model
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters  # torch 2.15
    sent: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": has_running_statistics(model)}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **sent)


def has_running_statistics(model: nn.Module) -> bool:
    """Return whether `model` has buffers that its forward pass changes, differently in each process.

    These are running statistics of batch norms, except of those that gather the batch of all processes.
    """
    return any(
        isinstance(module, _BatchNorm) and module.track_running_stats and not getattr(module, "gathers", False)
        for module in model.modules()
    )
