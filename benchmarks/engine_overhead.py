"""B23: what the training engine adds to a step, against the shortest loop that trains the same.

    python benchmarks/engine_overhead.py [--steps 300] [--repeats 15] [--json]

The bare loop takes a batch, sets the learning rate and does forward, backward and the fused AdamW step. The engine does
that and everything else it promises, a line of metrics every 20 steps with TensorBoard included; saving is not
counted, for it is asked for separately. Both end with the same weights, bit for bit. Reads from the device between two
lines of metrics are counted as well: there are none. Sides take turns and the least time of each counts. The machine's
matrix-product rate is measured in the same run. Ends with status 1 above the floor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import device_name, setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw
from mimbench.engine.training.step import Stepper
from mimbench.engine.training.train import Training, train

FLOOR, AIM = 200.0, 100.0  # microseconds a step; mmengine's own loop and hooks take 145 and two reads
RATE = 1e-3


class Ready(Batches):
    """Batches that are in memory, so that only the loop is measured."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ready = [(torch.randn(8, 16, generator=generator), torch.arange(8) % 4) for _ in range(50)]
        super().__init__(range(400), 8, seed=0)

    def starting_at(self, position: int) -> Iterator[Any]:
        """For ever, from batch `position`."""
        return itertools.islice(itertools.cycle(self.ready), position % 50, None)


class Toy(nn.Module):
    """Two layers, and two scalars to log."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        scores = self.net(batch[0])
        return {"loss": nn.functional.cross_entropy(scores, batch[1]), "norm": scores.norm()}


def made(steps: int) -> Training:
    """The same start for either side."""
    compute = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=20, save_every=steps)
    setup_process(compute, seed=0)
    model = Toy()
    optimizer = adamw([{"params": list(model.parameters())}], RATE, (0.9, 0.95))
    return Training(model, optimizer, Ready(), steps, lambda step: RATE, compute, seed=0)


def bare(steps: int) -> tuple[float, nn.Module]:
    """Microseconds a step of the bare loop, and its model."""
    training = made(steps)
    model, optimizer, batches = training.model, training.optimizer, training.batches.starting_at(0)
    begun = time.perf_counter()
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE
        model(next(batches))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - begun) / steps * 1e6, model


def engine(steps: int) -> tuple[float, nn.Module]:
    """Microseconds a step of the engine, and its model."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunDir.create(Path(directory) / "run", "", {"recipe": "toy", "stage": "toy", "identity": "0"})
        trained = train(run, made(steps))
    return trained.seconds / steps * 1e6, trained.model


class Reads(TorchDispatchMode):
    """Counts what would make a CPU wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads(steps: int = 20) -> int:
    """Reads from the device in steps between two lines of metrics."""
    training = made(steps + 1)
    stepper, batches = Stepper(training, torch.device("cpu")), training.batches.starting_at(0)
    stepper.step(0, batches)  # the optimiser makes its state
    with Reads() as counter:
        for index in range(1, steps + 1):
            stepper.step(index, batches)
    return counter.count


def matrix_rate() -> float:
    """GFLOP/s of float32 matrix products on one thread, the best of five."""
    left, right, best = torch.randn(1024, 1024), torch.randn(1024, 1024), float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begun)
    return 2 * 1024**3 / best / 1e9


def main() -> int:
    """Measure, check that both sides did the same, print, and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = [(bare(options.steps), engine(options.steps)) for _ in range(options.repeats + 1)][1:]
    for (_, plain), (_, full) in pairs:
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), full.parameters(), strict=True))
    peer, ours = (min(pair[side][0] for pair in pairs) for side in range(2))
    found = {
        "bare_us": peer,
        "engine_us": ours,
        "added_us": ours - peer,
        "reads": float(reads()),
        "gflops": matrix_rate(),
    }
    if options.json:
        print(json.dumps({**found, "floor": FLOOR, "aim": AIM}))
    else:
        print(f"{device_name(torch.device('cpu'))}; matrix products {found['gflops']:.0f} GFLOP/s fp32")
        print(
            f"B23 a step of the bare loop {peer:.0f} us, of the engine {ours:.0f} us: {ours - peer:.0f} us added, "
            f"{found['reads']:.0f} device reads between lines  (floor {FLOOR:.0f}, aim {AIM:.0f}, reads 0)"
        )
    return int(found["added_us"] > FLOOR or found["reads"] > 0)


if __name__ == "__main__":
    sys.exit(main())
