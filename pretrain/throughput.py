"""Which side of a pretraining waits for the other: what the loading processes deliver alone, and what the step takes.

pace = measure(config, seconds=3)      # config: any pretraining recipe, its data set being there
pace.loader, pace.step                 # images a second, each without the other
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mimbench.engine.data.batches import move
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.images import ImageFolder
from mimbench.engine.run.process import autocast_dtype, setup_process
from mimbench.engine.training.optim import adamw
from mimbench.pretrain.config import Pretrain, RandomMasking
from mimbench.pretrain.run import build_step, decay_groups, training_batches
from mimbench.pretrain.step import Step

SECONDS = 3.0
AT_ONCE = {"cuda": 256, "cpu": 16}  # images of a step, at most: enough for a GPU to be busy


@dataclass(frozen=True)
class Pace:
    """Images a second of one process."""

    loader: float
    step: float
    workers: int  # loading processes
    batch: int
    device: torch.device

    @property
    def starved(self) -> bool:
        """Whether the step would wait for images; within a tenth it may."""
        return self.loader < 1.1 * self.step


def measure(config: Pretrain, seconds: float) -> Pace:
    """Time loading, then the step (forward, backward and optimiser) on one batch over and over, `seconds` each.

    Weight maps of training images, which a run would make first, are left out: the masking is then random.

    Raises:
        FileNotFoundError: if the data set is not there.
        ValueError: if it holds too few images, or the recipe wants a checkpoint and has none.
    """
    device = setup_process(config.compute, config.seed)
    folder = ImageFolder(locate(config.data), "train", decoder=config.jpeg_decoder)
    batch = min(config.batch // config.compute.accumulate, AT_ONCE[device.type], len(folder))
    masking = RandomMasking() if config.masking.needs == "maps" else config.masking
    config = replace(config, batch=batch, masking=masking, compute=replace(config.compute, accumulate=1))
    sample, loader = _loading(config, folder, seconds)
    step = _rate(_stepping(config, build_step(config).to(device), move(sample, device)), batch, seconds, device)
    return Pace(loader, step, config.compute.workers, batch, device)


def _loading(config: Pretrain, folder: ImageFolder, seconds: float) -> tuple[Any, float]:
    """A batch, and images a second. The loading processes end with this function, and do not disturb the step."""
    batches = training_batches(config, folder).starting_at(0)
    return next(batches), _rate(lambda: next(batches), config.batch, seconds)


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
    """Images a second of `work`, which takes `images` of them, after one call that does not count."""
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
