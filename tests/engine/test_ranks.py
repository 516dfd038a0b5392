"""Two processes, each with half of every batch, end with the weights of one process with all of it.

They exchange nothing but gradients, once per step, and keep them once. With shares of the weights (compute.shard) they
do too, resume bit for bit, and go on from each other's checkpoints.

python tests/engine/test_ranks.py DIRECTORY     # what the test starts: one process, then two, forked from it
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import leave, rank_and_world, setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.state import load_state
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
    """Two layers, a shift and a constant; with `norm`, running statistics. Two processes cannot halve all of it."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(8, 15), nn.BatchNorm1d(15) if norm else nn.Identity(), nn.GELU(), nn.Linear(15, 4)]
        self.blocks = nn.ModuleList(layers)
        self.shift = nn.Parameter(torch.zeros(1, 8))
        self.register_buffer("constant", torch.ones(8))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        hidden = batch[0] + self.shift
        for block in self.blocks:
            hidden = block(hidden)
        return {"loss": nn.functional.cross_entropy(hidden, batch[1])}


def _attempt(directory: Path, batch: int, accumulate: int, steps: int, shard: bool = False) -> None:
    compute = Compute(precision="fp32", accumulate=accumulate, shard=shard, workers=0, device="cpu", log_every=3,
                      save_every=4)  # fmt: skip
    setup_process(compute, seed=0)
    rank, world = rank_and_world()
    model = Classifier()
    groups = parameter_groups(model.named_parameters(), 0.05, lambda name, parameter: parameter.ndim < 2)
    batches = Batches(Vectors(), batch // accumulate // world, 0, accumulate=accumulate)

    def keep(model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Run the model in the first process alone, which has whole weights."""
        assert rank == 0
        assert model((torch.eye(8), torch.arange(8) % 4))["loss"].item() == metrics["seen"]
        torch.save(model.state_dict(), directory / "kept.pt")

    training = Training(
        model, adamw(groups, 0.0, (0.9, 0.95)), batches, steps, lambda step: 1e-2, compute, 0, grad_clip=1.0, ema=0.8,
        evaluate=lambda model: {"seen": model((torch.eye(8), torch.arange(8) % 4))["loss"].item()}, evaluate_every=5,
        keep=keep,
    )  # fmt: skip
    trained = train(RunDir(directory), training)
    torch.save(trained.model.state_dict(), directory / f"weights-{rank}-of-{world}.pt")
    if rank == 0:
        kept = torch.load(directory / "kept.pt")
        assert all(torch.equal(kept[name], value) for name, value in trained.model.state_dict().items())


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

    attempts = [("one", 1, 10, False), ("two", 2, 4, False), ("two", 2, 10, False)]
    attempts += [("unstopped", 2, 10, True), ("shares", 2, 4, True)]
    attempts += [("mixed", 1, 7, False), ("mixed", 2, 10, True), ("shares", 2, 10, True)]
    for name, world, steps, shard in attempts:
        if (name, world) == ("mixed", 1):  # goes on from shares, and its end is gone on from in shares
            shutil.copytree(directory / "shares", directory / "mixed")
        RunDir.create(directory / name, "", {"recipe": "test/ranks", "stage": "test", "identity": "0"})
        as_ranks(
            world,
            lambda name=name, steps=steps, shard=shard: _attempt(directory / name, 8, 2, steps, shard),
        )
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
    for case in ("shares", "mixed"):
        for rank in range(2):
            shares = torch.load(tmp_path / case / f"weights-{rank}-of-2.pt")
            for name, weight in one.items():
                torch.testing.assert_close(shares[name], weight, rtol=1e-4, atol=1e-5)
    lines = _lines(tmp_path / "two")
    assert [line["step"] for line in lines if "loss" in line] == [3, 4, 6, 9, 10]
    for case in ("shares", "mixed"):
        for line, other in zip(_outside(lines), _outside(_lines(tmp_path / case)), strict=True):
            assert line.keys() == other.keys()
            assert all(other[name] == pytest.approx(line[name], rel=1e-4) for name in line.keys() & COMPARED)
    _same_files(tmp_path)
    counted = json.loads((tmp_path / "exchanged.json").read_text())
    assert counted["False"] == {"sent": {"gloo:all_reduce": 3}, "storages": [1] * 5}
    with_norm = counted["True"]["sent"]  # running statistics are sent before the forward pass that gradients follow
    assert with_norm["gloo:all_reduce"] == 3
    assert with_norm["gloo:broadcast"] >= 3


COMPARED = {"step", "loss", "grad_norm", "lr", "seen"}


def _lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _outside(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without the lines around the step at which one of the runs starts again and the others do not."""
    return [line for line in lines if line["step"] <= 4 or line["step"] == 10]


def _same_files(directory: Path) -> None:
    """Checkpoints of shares hold the same tensors as without; those of a run that was resumed are the same bits."""
    sizes = {name: (directory / name / "kept.pt").stat().st_size for name in ("one", "two", "shares")}
    assert len(set(sizes.values())) == 1, sizes
    unstopped, shares, two = (load_state(directory / name / "checkpoints" / "step-00000010.pt")["stepper"]
                              for name in ("unstopped", "shares", "two"))  # fmt: skip
    leaves, again, plain = (tree_flatten_with_path(state)[0] for state in (unstopped, shares, two))
    assert [path for path, _ in leaves] == [path for path, _ in plain]
    for (_, value), (_, resumed), (_, other) in zip(leaves, again, plain, strict=True):
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed)
            assert (type(value), value.shape, value.dtype) == (type(other), other.shape, other.dtype)
            torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
