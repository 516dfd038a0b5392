"""Two processes, each with half of every batch, end with the weights of one process with all of it.

They exchange nothing but gradients, once per step, and keep them once.

python tests/engine/test_ranks.py DIRECTORY     # what the test starts: one process, then two, forked from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import leave, rank_and_world, setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.step import Stepper
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
    """Two layers and a constant; with `norm`, running statistics."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.GELU(), nn.Linear(16, 4)]
        self.net = nn.Sequential(*layers)
        self.register_buffer("constant", torch.ones(8))

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


def _exchanged(norm: bool) -> dict[str, Any]:
    """What two processes exchange in 3 steps of 2 micro-batches, and the storages that their gradients share.

    Two steps come before: the order of the buckets is settled in the second.
    """
    compute = Compute(precision="fp32", accumulate=2, workers=0, device="cpu")
    device = setup_process(compute, seed=0)
    model, storages = Classifier(norm), []
    batches = Batches(Vectors(), 2, 0, accumulate=2)
    training = Training(model, adamw([{"params": list(model.parameters())}], 0.0, (0.9, 0.95)), batches, 5,
                        lambda step: 1e-2, compute, 0)  # fmt: skip
    training.optimizer.register_step_pre_hook(
        lambda *_: storages.append(len({p.grad.untyped_storage().data_ptr() for p in model.parameters()}))
    )
    stepper, found = Stepper(training, device), batches.starting_at(0)
    for step in range(2):
        stepper.step(step, found)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for step in range(2, 5):
            stepper.step(step, found)
    sent = Counter(event.name for event in profiler.events() if event.name.startswith("gloo:"))
    return {"sent": dict(sent), "storages": storages}


def _count(directory: Path) -> None:
    counted = {str(norm): _exchanged(norm) for norm in (False, True)}
    if rank_and_world()[0] == 0:
        (directory / "exchanged.json").write_text(json.dumps(counted))
    leave()
    leave()  # nothing to leave any more


def main(directory: Path) -> None:
    """One process for 10 steps; then two, for 4 steps and, resumed, to 10; then count what two exchange."""
    import mmengine.runner  # noqa: F401  (once, rather than in each process)
    import torch._dynamo  # noqa: F401

    for name, world, steps in (("one", 1, 10), ("two", 2, 4), ("two", 2, 10)):
        RunDir.create(directory / name, "", {"recipe": "test/ranks", "stage": "test", "identity": "0"})
        as_ranks(world, lambda name=name, steps=steps: _attempt(directory / name, batch=8, accumulate=2, steps=steps))
    as_ranks(2, lambda: _count(directory))


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
    counted = json.loads((tmp_path / "exchanged.json").read_text())
    assert counted["False"] == {"sent": {"gloo:all_reduce": 3}, "storages": [1] * 5}
    with_norm = counted["True"]["sent"]  # running statistics are sent before the forward pass that gradients follow
    assert with_norm["gloo:all_reduce"] == 3
    assert with_norm["gloo:broadcast"] >= 3


if __name__ == "__main__":
    main(Path(sys.argv[1]))
