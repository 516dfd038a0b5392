"""Measure whether a pretraining waits for its data: the throughput of loading, and of the step, separately.

pace = measure(config, seconds=3)      # config: any pretraining recipe whose data set exists
pace.loader, pace.step                 # images per second, each measured without the other
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mimbench.engine.data.batches import Batches, move
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.images import ImageFolder
from mimbench.engine.run.process import autocast_dtype, setup_process
from mimbench.engine.training.optim import adamw
from mimbench.pretrain.config import Pretrain, RandomMasking
from mimbench.pretrain.run import build_step, decay_groups, training_batches
from mimbench.pretrain.step import Step

SECONDS = 3.0
AT_ONCE = {"cuda": 256, "cpu": 16}  # most images in a step: enough to keep a GPU busy


@dataclass(frozen=True)
class Pace:
    """Images per second of one process."""

    loader: float
    step: float
    workers: int  # loading processes
    batch: int
    device: torch.device

    @property
    def starved(self) -> bool:
        """Whether the step would wait for images: loading is less than 10 % faster."""
        return self.loader < 1.1 * self.step


def measure(config: Pretrain, seconds: float) -> Pace:
    """Measure loading, then the step (forward, backward and optimiser) repeated on one batch, for `seconds` each.

    Weight maps of training images are left out: a masking that needs them is replaced by a random one.

    Raises:
        FileNotFoundError: if the data set does not exist.
        ValueError: if it holds too few images, or the recipe lacks a required checkpoint.
    """
    device = setup_process(config.compute, config.seed)
    folder = ImageFolder(locate(config.data), "train", decoder=config.jpeg_decoder)
    batch = min(config.batch // config.compute.accumulate, AT_ONCE[device.type], len(folder))
    masking = RandomMasking() if config.masking.needs == "maps" else config.masking
    config = replace(config, batch=batch, masking=masking, compute=replace(config.compute, accumulate=1))
    batches = training_batches(config, folder)
    sample, loader = _loading(batches, seconds)
    step = _rate(_stepping(config, build_step(config).to(device), move(sample, device)), batch, seconds, device)
    return Pace(loader, step, batches.workers, batch, device)


def _loading(batches: Batches, seconds: float) -> tuple[Any, float]:
    """Return a batch, and images per second. Loading processes end here, so they do not slow the step."""
    stream = batches.starting_at(0)
    return next(stream), _rate(lambda: next(stream), batches.batch, seconds)


def _stepping(config: Pretrain, step: Step, sample: Any) -> Callable[[], object]:
    optimizer = adamw(decay_groups(step.method, config), config.learning_rate, config.betas)
    dtype = autocast_dtype(config.compute, step.mean.device)

    def once() -> None:
        with torch.autocast(step.mean.device.type, dtype, enabled=dtype is not None):
            loss = step(sample)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def _rate(work: Callable[[], object], images: int, seconds: float, device: torch.device | None = None) -> float:
    """Return images per second of `work`, which processes `images` per call, after one untimed call."""
    work()
    done, begun = 0, _now(device)
    while _now(device) - begun < seconds:
        work()
        done += 1
    return done * images / (_now(device) - begun)


def _now(device: torch.device | None) -> float:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
