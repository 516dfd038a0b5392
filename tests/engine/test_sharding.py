"""Shares of the weights are refused where they cannot work; that they do elsewhere is in test_ranks.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mimbench.engine.training.optim import LARS
from mimbench.engine.training.sharding import shard

CPU = torch.device("cpu")


def test_an_optimiser_that_needs_whole_weights_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"works with AdamW, not LARS, which needs whole weights: use compute.shard=false"
    ):
        shard(model, LARS(model.parameters(), 0.1, 0.0), CPU)


def test_a_torch_whose_fsdp_needs_a_gpu_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.6 ended with `'Stream' object has no attribute 'record_event'` in the first step."""
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"needs a GPU or a newer torch than .* on the CPU: use compute.shard=false"):
        shard(model, torch.optim.AdamW(model.parameters()), CPU)
