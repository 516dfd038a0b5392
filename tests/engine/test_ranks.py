"""Two processes, each with half of every batch, end with the weights of one process with all of it.

python tests/engine/test_ranks.py DIRECTORY     # what the test starts: one process, then two, forked from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import rank_and_world, setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.train import Training, train
from tests.ranks import as_ranks

ROOT = Path(__file__).parent.parent.parent


class Vectors:
    """40 vectors in 4 classes."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return nn.functional.one_hot(torch.tensor(index % 4), 8).float() + 0.3 * torch.randn(8), index % 4


class Classifier(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.net(batch[0]), batch[1])}


def _attempt(directory: Path, batch: int, accumulate: int, steps: int) -> None:
    compute = Compute(precision="fp32", accumulate=accumulate, workers=0, device="cpu", log_every=3, save_every=4)
    setup_process(compute, seed=0)
    rank, world = rank_and_world()
    model = Classifier()
    groups = parameter_groups(model.named_parameters(), 0.05, lambda name, parameter: parameter.ndim < 2)
    batches = Batches(Vectors(), batch // accumulate // world, 0, accumulate=accumulate)
    training = Training(
        model, adamw(groups, 0.0, (0.9, 0.95)), batches, steps, lambda step: 1e-2, compute, 0, grad_clip=1.0
    )
    trained = train(RunDir(directory), training)
    torch.save(trained.model.state_dict(), directory / f"weights-{rank}-of-{world}.pt")


def main(directory: Path) -> None:
    """One process for 10 steps; then two, for 4 steps and, resumed, to 10."""
    import mmengine.runner  # noqa: F401  (once, rather than in each process)
    import torch._dynamo  # noqa: F401

    for name, world, steps in (("one", 1, 10), ("two", 2, 4), ("two", 2, 10)):
        RunDir.create(directory / name, "", {"recipe": "test/ranks", "stage": "test", "identity": "0"})
        as_ranks(world, lambda name=name, steps=steps: _attempt(directory / name, batch=8, accumulate=2, steps=steps))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = torch.load(tmp_path / "one" / "weights-0-of-1.pt")
    first, second = (torch.load(tmp_path / "two" / f"weights-{rank}-of-2.pt") for rank in range(2))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 6, 9, 10]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
