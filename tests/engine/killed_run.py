"""A small training that is killed by SIGKILL again and again, and the weights it ends with.

    python tests/engine/killed_run.py DIRECTORY [--workers 2] [--accumulate 2] [--ema 0.9] [--precision bf16]

Trains once without a stop and once for each way of being killed, started again until it finishes. Prints a line of
JSON: for each way, how often it was killed, a digest of the final weights and optimiser, the lines of metrics, and the
temporary files it left. Libraries are imported once; each attempt is a process of its own, forked from here.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mmengine.runner
import numpy as np
import torch
import torch._dynamo  # every optimiser imports it
import torch.utils.tensorboard
from torch import Tensor, nn

from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training import metric_log, state
from mimbench.engine.training import train as train_module
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.schedule import warmup_cosine
from mimbench.engine.training.state import steps_saved
from mimbench.engine.training.train import Training, train
from tests.kills import die, dying, forked, killed

STEPS, SAVE_EVERY, LOG_EVERY, EVALUATE_EVERY = 30, 5, 3, 10  # an epoch is 7 steps, so most saves fall inside one


class NoisyVectors:
    """Vectors whose augmentation draws from Python's, NumPy's and torch's generators."""

    def __len__(self) -> int:
        return 58

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(6) * random.random() + torch.from_numpy(np.random.rand(6)).float()
        return noise + index / 58, index % 3


class Classifier(nn.Module):
    """Dropout and batch norm: randomness in the step, and buffers beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.GELU(), nn.Linear(16, 3))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        scores = self.net(batch[0] * (1 + 0.1 * random.random()))
        return {"loss": nn.functional.cross_entropy(scores, batch[1])}


def attempt(directory: Path, options: argparse.Namespace) -> str:
    """Train to the end and return a digest of weights and optimiser."""
    compute = Compute(
        precision=options.precision,
        accumulate=options.accumulate,
        workers=options.workers,
        device="cpu",
        log_every=LOG_EVERY,
        save_every=SAVE_EVERY,
    )
    setup_process(compute, seed=3)
    model = Classifier()
    groups = parameter_groups(model.named_parameters(), 0.05, lambda name, parameter: parameter.ndim < 2)
    optimizer = adamw(groups, lr=0.0, betas=(0.9, 0.95))
    training = Training(
        model,
        optimizer,
        Batches(NoisyVectors(), 8 // options.accumulate, 3, accumulate=options.accumulate, workers=options.workers),
        STEPS,
        lambda step: warmup_cosine(step, 1e-2, 0.0, 5, STEPS),
        compute,
        seed=3,
        grad_clip=1.0,
        ema=options.ema,
        evaluate=lambda model: {"spread": float(next(model.parameters()).std()) + random.random()},
        evaluate_every=EVALUATE_EVERY,
    )
    run = RunDir.create(directory, "", {"recipe": "test/killed", "stage": "test", "identity": "0"})
    trained = train(run, training)
    buffer = io.BytesIO()
    torch.save([trained.model.state_dict(), optimizer.state_dict()["state"]], buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def half_a_line(sink: metric_log.JsonLines, step: int, line: Any) -> None:
    """The kill comes in the middle of a line of metrics."""
    if step == 2 * LOG_EVERY:
        sink._file.write(json.dumps({"step": step, **line})[:20])
        sink._file.flush()
        die()
    WRITE_LINE(sink, step, line)


WRITE_LINE = metric_log.JsonLines.write
SINK, SESSION = state._Sink, train_module.Session

MOMENTS: dict[str, Callable[[], Any]] = {
    "before the first checkpoint": lambda: patch.object(SESSION, "write_line", dying(SESSION.write_line, 1)),
    "between two checkpoints": lambda: patch.object(SESSION, "write_line", dying(SESSION.write_line, 4)),
    "beginning to write a checkpoint": lambda: patch.object(torch, "save", dying(torch.save, 2)),
    "writing a checkpoint": lambda: patch.object(SINK, "write", dying(SINK.write, 90)),
    "having written, before the rename": lambda: patch.object(os, "fsync", dying(os.fsync, 7, after=True)),
    "having renamed a checkpoint": lambda: patch.object(Path, "replace", dying(Path.replace, 4, after=True)),
    "removing an old checkpoint": lambda: patch.object(Path, "unlink", dying(Path.unlink, 6)),
    "writing a line": lambda: patch.object(metric_log.JsonLines, "write", half_a_line),
    "evaluating": lambda: patch.object(SESSION, "evaluate", dying(SESSION.evaluate, 2)),
    "loading a sample": lambda: patch.object(NoisyVectors, "__getitem__", dying(NoisyVectors.__getitem__, 95)),
    "after the last step": lambda: patch.object(SESSION, "close", dying(SESSION.close, 1)),
}


def started(directory: Path, options: argparse.Namespace, moment: Callable[[], Any] | None = None) -> int:
    """Start an attempt in a process of its own, and return its number."""

    def work() -> None:
        with moment() if moment else nullcontext():
            digest = attempt(directory, options)
        (directory / "digest").write_text(digest)

    return forked(work)


def killed_at(directory: Path, options: argparse.Namespace, moment: Callable[[], Any] | None) -> dict[str, Any]:
    """Killed once at `moment` (never if None), then started again."""
    kills = 0
    while killed(started(directory, options, None if kills else moment)):
        kills += 1
    return outcome(directory, kills)


def killed_often(directory: Path, options: argparse.Namespace, whole: float) -> dict[str, Any]:
    """Killed from outside after random times, growing so that it comes to an end.

    But not long after step 10, and then 20, so that a run on a fast machine, too, is killed twice at least.
    """
    generator, kills = random.Random(options.workers), 0
    while True:
        child = started(directory, options)
        until = time.monotonic() + generator.uniform(0.1, 0.3 + 0.1 * kills) * whole
        while time.monotonic() < until and not (kills < 2 and reached(directory, 10 * (kills + 1))):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        if not killed(child):
            return outcome(directory, kills)
        kills += 1


def reached(directory: Path, step: int) -> bool:
    """Whether a state of that step or a later one is saved."""
    return any(saved >= step for saved in steps_saved(directory / "checkpoints"))


def outcome(directory: Path, kills: int) -> dict[str, Any]:
    """What a run left behind, without what differs by the clock."""
    timed = ("images_per_second", "waiting", "seconds", "memory")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "kills": kills,
        "digest": (directory / "digest").read_text(),
        "lines": [{key: value for key, value in line.items() if key not in timed} for line in lines],
        "checkpoints": sorted(path.name for path in (directory / "checkpoints").iterdir()),
        "stale": [path.name for path in directory.rglob("*.tmp")],
    }


def main() -> None:
    """Everything above, as the module's first lines say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--ema", type=float)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    mmengine.runner.runner.collect_env()  # what it imports, the attempts need not
    begun = time.monotonic()
    outcomes = {"never": killed_at(options.directory / "never", options, None)}
    whole = time.monotonic() - begun
    for name, moment in MOMENTS.items():
        outcomes[name] = killed_at(options.directory / name.replace(" ", "-"), options, moment)
    outcomes["at random"] = killed_often(options.directory / "random", options, whole)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
