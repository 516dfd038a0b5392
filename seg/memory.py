"""Estimate how much GPU memory UperNet needs, before it is run; frozen protocols need little more than the encoder.

    needed = estimate(config)                 # for one GPU, counted in the real model
    advice(config, free=24 * 2**30)           # None if it fits; else a config that would

Bytes are counted as in `engine.training.memory`. The loss keeps a gradient of the logits before they are enlarged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mimbench.backbones.config import ViT
from mimbench.engine.training.counting import Saved
from mimbench.engine.training.memory import Estimate, autocast_as, estimate_of, first_that_fits, gib
from mimbench.seg.config import UPerNetConfig
from mimbench.seg.model.build import build_segmenter
from mimbench.seg.model.enlarge import bands, matrix
from mimbench.seg.model.norm import SyncBatchNorm

ADE_CLASSES = 150


def estimate(config: UPerNetConfig, world: int = 1, classes: int = ADE_CLASSES) -> Estimate:
    """Return the memory that each of `world` GPUs needs for `config`, with the recipe's encoder.

    Raises:
        ValueError: if the batch cannot be divided among the processes and micro-batches.
    """
    parts = world * config.compute.accumulate
    if config.batch % parts:
        raise ValueError(f"batch={config.batch} must be a multiple of processes x compute.accumulate = {parts}")
    images = config.batch // parts
    with torch.device("meta"):  # initialising weights costs nothing there; fake tensors do not support it
        model = build_segmenter(replace(config, checkpoint=None, steps=1), classes).model
    for module in model.modules():
        if isinstance(module, SyncBatchNorm):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]  # a single process, whoever asks: nothing is sent to others
    _forget_matrices()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = model.to_empty(device="cpu").train()
            saved = Saved(model)
            with saved.counting(), autocast_as(config.compute.precision):
                maps = model.neck(model.backbone(torch.empty(images, 3, config.image, config.image)))
                logits = [model.decode_head(maps)]
                if model.auxiliary_head is not None:
                    logits.append(model.auxiliary_head(maps[config.heads.aux_output]))
            gradients = sum(4 * one.numel() for one in logits)
            kept, accumulate = saved.bytes + gradients, config.compute.accumulate
            return estimate_of(
                model, images, world, kept,
                accumulate=accumulate, recompute=config.recompute, shard=config.compute.shard,
            )  # fmt: skip
    finally:
        _forget_matrices()


def _forget_matrices() -> None:
    """Empty the caches of matrices, so that real and fake ones do not mix."""
    matrix.cache_clear()
    bands.cache_clear()


def advice(config: UPerNetConfig, free: int, world: int = 1) -> str | None:
    """Return None if `config` fits into `free` bytes; else one line with the estimate and a change that fits."""
    needed = estimate(config, world)
    if needed.total <= free:
        return None
    what = f"about {gib(needed.total)} GiB are needed for {needed.images} images at a time, but {gib(free)} are free"
    sized = partial(estimate, world=world)
    if (change := first_that_fits(list(_alike(config, world)), free, sized)) is not None:
        return f"{what}; it fits with {change}, with the same result"
    for shard in (False, True) if world > 1 and not config.compute.shard else (False,):
        if (change := first_that_fits(list(_divided(config, world, shard)), free, sized)) is not None:
            return (
                f"{what}; it fits with {change}, but batch norm then sees fewer images, which changes the result; more "
                "GPUs do not"
            )
    return f"{what}, and dividing the batch further does not help; use more GPUs or a smaller image"


def _alike(config: UPerNetConfig, world: int) -> Iterator[tuple[str, UPerNetConfig]]:
    """Yield what saves memory without changing the result: recompute, then also shares of the weights."""
    again = [] if config.recompute else ["recompute=true"]
    if again:
        yield again[0], replace(config, recompute=True)
    if world > 1 and not config.compute.shard:
        compute = replace(config.compute, shard=True)
        yield " ".join([*again, "compute.shard=true"]), replace(config, recompute=True, compute=compute)


def _divided(config: UPerNetConfig, world: int, shard: bool) -> Iterator[tuple[str, UPerNetConfig]]:
    """Yield more micro-batches, with recompute and perhaps shares of the weights; batch norm needs two images."""
    most = config.batch // world
    more = ([] if config.recompute else ["recompute=true"]) + (["compute.shard=true"] if shard else [])
    for parts in range(config.compute.accumulate + 1, most + 1):
        if most % parts == 0 and config.batch // parts >= 2:
            compute = replace(config.compute, accumulate=parts, shard=shard or config.compute.shard)
            yield " ".join([f"compute.accumulate={parts}", *more]), replace(config, compute=compute, recompute=True)


def require_memory(config: UPerNetConfig, encoder: ViT, world: int, free: int) -> None:
    """Check that the training fits into `free` bytes of a GPU; evaluations (steps=0) are not checked.

    Args:
        config: the run's config.
        encoder: shape of the encoder that is trained.
        world: number of processes, each with one GPU.
        free: available bytes per GPU.

    Raises:
        ValueError: if it does not fit; has the estimate and a change that fits.
    """
    if config.steps == 0:
        return
    if (what := advice(replace(config, encoder=encoder, checkpoint=None), free, world)) is not None:
        raise ValueError(f"the GPU has too little memory: {what}")
