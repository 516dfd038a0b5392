"""Estimate how much GPU memory a detection recipe needs, before it is run.

    needed = estimate(config)                 # for one GPU, counted in the real model
    needed.total, needed.activations          # bytes
    advice(config, free=24 * 2**30)           # None if it fits; else a config that would

The number of regions is the maximum that the losses use. How bytes are counted: `engine.training.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mimbench.backbones.config import ViT
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.model.build import from_scratch
from mimbench.det.model.cascade import CascadeHeads
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.model.roi_heads import POSITIVE
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.engine.training.counting import Saved
from mimbench.engine.training.memory import Estimate, autocast_as, estimate_of, first_that_fits, gib

COCO_CLASSES = 80


def estimate(config: MaskRCNNConfig, world: int = 1, classes: int = COCO_CLASSES) -> Estimate:
    """Return the memory that each of `world` GPUs needs for `config`, with the recipe's encoder.

    `precision=auto` counts as bf16, which every recent GPU supports.

    Raises:
        ValueError: if the batch cannot be divided among the processes and micro-batches.
    """
    parts = world * config.compute.accumulate
    if config.batch % parts:
        raise ValueError(f"batch={config.batch} must be a multiple of processes x compute.accumulate = {parts}")
    images = config.batch // parts
    with torch.device("meta"):  # initialising weights costs nothing there; fake tensors do not support it
        shape = config.shape_for(config.encoder)
        model = from_scratch(config, classes, shape, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu")
        saved = Saved(model)
        with saved.counting(), autocast_as(config.compute.precision):
            passed_forward(model.train(), images)
        return estimate_of(
            model, images, world, saved.bytes,
            accumulate=config.compute.accumulate, recompute=config.recompute, shard=config.compute.shard,
        )  # fmt: skip


def _box_stages(heads: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the box head and predictor of every stage; Mask R-CNN has one stage, Cascade three."""
    pair = (heads.get_submodule("box_head"), heads.get_submodule("box_predictor"))
    if not isinstance(heads, CascadeHeads):
        return [pair]
    return list(zip(pair[0].children(), pair[1].children(), strict=True))


def passed_forward(model: MaskRCNN, images: int) -> list[Tensor]:
    """Return the outputs of the parts of `model` for `images` images and the maximum number of regions in the losses.

    The positions of the regions do not affect the memory.
    """
    pixels = torch.empty(images, 3, model.image, model.image)
    maps = model.backbone(pixels)
    logits, codes = model.proposal_generator.rpn_head(maps)
    heads = model.roi_heads
    regions = images * heads.options.samples
    channels = maps[0].shape[1]
    outputs = [*logits, *codes]
    for head, predictor in _box_stages(heads):
        pooled = torch.empty(regions, channels, 7, 7, requires_grad=True)
        outputs += predictor(head(pooled))
    if heads.mask_head is not None:
        shown = round(regions * POSITIVE)
        pooled = torch.empty(shown, channels, 14, 14, requires_grad=True)
        outputs.append(heads.mask_head(pooled, torch.zeros(shown, dtype=torch.int64)))
    return outputs


# -------------------------------------------------------------------------------------------------------------- advice


def advice(config: MaskRCNNConfig, free: int, world: int = 1) -> str | None:
    """Return None if `config` fits into `free` bytes; else one line with the estimate and a change that fits."""
    needed = estimate(config, world)
    if needed.total <= free:
        return None
    what = f"about {gib(needed.total)} GiB are needed for {needed.images} images at a time, but {gib(free)} are free"
    for options in _smaller(config, world):
        if (change := first_that_fits(options, free, partial(estimate, world=world))) is not None:
            return f"{what}; it fits with {change}, with the same result"
    example = "image=640, as in det/mask_rcnn_vitdet_b_25ep_24gb_640px," if config.image > 640 else "a smaller image"
    return f"{what}, and dividing the batch further does not help; {example} needs less memory, but changes the results"


def require_memory(config: MaskRCNNConfig, encoder: ViT, world: int, free: int) -> None:
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


def _smaller(config: MaskRCNNConfig, world: int) -> Iterator[list[tuple[str, MaskRCNNConfig]]]:
    """Yield options that save memory without changing the result: more micro-batches, also recompute, also shares."""
    if config.loss_weights == "batch":
        return
    most = config.batch // world
    divisions = [parts for parts in range(config.compute.accumulate, most + 1) if most % parts == 0]
    shared = config.compute.shard or (world > 1 and config.engine == "mimbench")
    ways = [(config.recompute, config.compute.shard), (True, config.compute.shard), (True, shared)]
    for again, shard in dict.fromkeys(ways):
        options = []
        for parts in divisions:
            keys = [f"compute.accumulate={parts}"] if parts != config.compute.accumulate else []
            keys += ["recompute=true"] if again and not config.recompute else []
            keys += ["compute.shard=true"] if shard and not config.compute.shard else []
            compute = replace(config.compute, accumulate=parts, shard=shard)
            options.append((" ".join(keys), replace(config, compute=compute, recompute=again)))
        yield options
