"""A training of a second or less: vectors with random augmentation, a network with dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.train import Training

COMPUTE = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=5, save_every=10)


class NoisyVectors:
    """72 vectors in 3 classes that can be told apart, with noise that is new each time."""

    def __len__(self) -> int:
        return 72

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % 3
        return nn.functional.one_hot(torch.tensor(label), 6).float() + 0.3 * torch.randn(6), label


class Classifier(nn.Module):
    """Two layers; `dropout` makes its steps random."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        scores = self.net(batch[0])
        right = (scores.argmax(1) == batch[1]).float().mean()
        return {"loss": nn.functional.cross_entropy(scores, batch[1]), "right": right}


@pytest.fixture
def compute() -> Compute:
    return COMPUTE


@pytest.fixture
def make_training() -> Callable[..., Training]:
    """`make_training(steps=20, dropout=0.0, batch=8, compute=..., **fields of Training)`."""

    def make(
        steps: int = 20, dropout: float = 0.0, batch: int = 8, compute: Compute = COMPUTE, **fields: Any
    ) -> Training:
        setup_process(compute, seed=0)
        model = fields.pop("model", None) or Classifier(dropout)
        groups = parameter_groups(model.named_parameters(), 0.05, lambda name, parameter: parameter.ndim < 2)
        dataset = fields.pop("dataset", None) or NoisyVectors()
        batches = Batches(dataset, batch, 0, accumulate=compute.accumulate, workers=compute.workers)
        training = Training(model, adamw(groups, 0.0, (0.9, 0.95)), batches, steps, lambda step: 1e-2, compute, 0)
        return replace(training, **fields)

    return make


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    about = {"recipe": "test/tiny", "stage": "test", "identity": "0123456789"}
    return RunDir.create(tmp_path / "run", "", about)
