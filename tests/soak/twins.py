"""Tiny twins of the published recipes: as published, but for a tiny encoder, small images and few steps.

    twins()     # every published recipe; those whose twins are alike share one

What a twin keeps is everything else: the augmentation, mixing, erasing, losses, optimiser, learning rates (of the
published batch), the shape of the schedule, drop path, layer decay, evaluation. A new recipe has a twin by itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mimbench.backbones.config import ViT
from mimbench.cls.config import Classify, FastLinear, Finetune, Frozen, Linear
from mimbench.det.config import MaskRCNNConfig
from mimbench.engine.run.config import Compute, leaves
from mimbench.jobs.runs.recipes import recipes
from mimbench.pretrain.config import AttentionMasking, MaskAlignConfig, MonitorConfig, Pretrain
from mimbench.seg.config import (
    LinearSegmentationConfig,
    PatchConfig,
    PatchKnnConfig,
    PatchLogisticConfig,
    UPerNetConfig,
)

NOT_PUBLISHED = "_handwritten"  # the demo's recipes, which tests/jobs and `mimbench demo` run as they are
GRID = 4  # patches along a side of a tiny image, where 14 are published
EPOCHS, BATCH = 2, 16
RATES = {
    "drop_path",
    "layer_decay",
    "base_lr",
    "lr",
    "min_lr",
    "start_lr",
    "weight_decay",
    "schedule",
    "window",
}  # numbers that change no code's path
DETECTOR_SIDE = 128  # pixels, where 1024 are published


@dataclass(frozen=True)
class Twin:
    """A tiny config and the recipes whose twin it is."""

    stage: str
    config: Any
    recipes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the first recipe, and how many more there are."""
        more = len(self.recipes) - 1
        return self.recipes[0] + (f"+{more}" if more else "")


def twins(whole: bool = bool(os.environ.get("MIMBENCH_SOAK"))) -> list[Twin]:
    """Every published recipe's twin; recipes that differ in nothing that a twin keeps share one.

    Unless `whole` (the environment of `make soak`), so do recipes that differ in nothing but RATES: the tests have
    three minutes for the soak.
    """
    found: dict[str, Twin] = {}
    for recipe in recipes():
        if not recipe.name.endswith(NOT_PUBLISHED):
            config = tiny(recipe.build())
            told = [leaf for leaf in leaves(config) if whole or not _alike(config, leaf.key)]
            key = f"{recipe.stage} {type(config).__name__} {told}"
            before = found[key].recipes if key in found else ()
            found[key] = Twin(recipe.stage, config, (*before, recipe.name))
    return list(found.values())


def _alike(config: Any, key: str) -> bool:
    """Whether the twins of recipes that differ in `key` alone are as good as one."""
    tiled = isinstance(config, MaskRCNNConfig) and config.vitdet.positions == "tile"  # eleven encoders of one table
    return key.rpartition(".")[2] in RATES or (tiled and key.startswith("encoder."))


def published() -> Iterator[str]:
    """Names of the recipes that must have a twin."""
    return (recipe.name for recipe in recipes() if not recipe.name.endswith(NOT_PUBLISHED))


def tiny(config: Any) -> Any:
    """The twin of a recipe's config.

    Raises:
        TypeError: for a config that nobody has said how to make small.
    """
    for kind, shrink in SHRINK.items():
        if isinstance(config, kind):
            compute = _compute(config.compute)
            if not isinstance(config, MaskRCNNConfig):  # what "auto" is on GPUs; on a CPU it takes detectors 20 s
                compute = replace(compute, precision="bf16")
            return replace(shrink(config), compute=compute)
    raise TypeError(f"say in tests/soak/twins.py how a {type(config).__name__} is made tiny")


def tiny_vit(vit: ViT, depth: int = 6, grid: int = GRID) -> ViT:
    """Half the patch, `grid` patches a side where 14 are published, 32 wide, and a block more than MaskAlign's top5."""
    patch = vit.patch // 2
    return ViT(width=32, depth=depth, heads=2, patch=patch, image=patch * grid * (2 if vit.image == 448 else 1))


def _compute(compute: Compute) -> Compute:
    parts = min(compute.accumulate, 2)
    return replace(compute, accumulate=parts, workers=0, threads=1, device="cpu", log_every=4, save_every=5)


def _pretrain(config: Pretrain) -> Pretrain:
    short = EPOCHS / config.epochs
    method = config.method
    if isinstance(method, MaskAlignConfig):  # its teacher is a tiny encoder in a file, given as checkpoint
        method = replace(method, teacher=None, teacher_image=None)
    elif hasattr(method, "width"):
        method = replace(method, width=32, heads=2)  # type: ignore[call-arg]
    masking = config.masking
    if isinstance(masking, AttentionMasking):
        start, interval = (
            math.ceil((epoch or config.epochs // 10) * short) for epoch in (masking.start_epoch, masking.interval)
        )
        masking = replace(masking, start_epoch=start, interval=interval)
    return replace(
        config,
        encoder=tiny_vit(config.encoder, grid=GRID if getattr(masking, "unit", 1) == 1 else 6),
        method=method,
        masking=masking,
        epochs=EPOCHS,
        warmup_epochs=max(0.5, config.warmup_epochs * short),
        drops=tuple(drop * short for drop in config.drops),
        batch=BATCH,
        base_lr=config.base_lr * config.batch / BATCH,
        monitor=MonitorConfig(every=float(EPOCHS), images=32),
    )


def _trained(config: Any) -> Any:
    """What fine-tuning and linear probes share."""
    return replace(
        config,
        encoder=tiny_vit(config.encoder),
        image=tiny_vit(config.encoder).image,
        epochs=EPOCHS,
        warmup_epochs=max(0.5, config.warmup_epochs * EPOCHS / config.epochs),
        batch=BATCH,
        base_lr=config.base_lr * config.batch / BATCH,
    )


def _fast_linear(config: FastLinear) -> FastLinear:
    vit = tiny_vit(config.encoder)
    return replace(config, encoder=vit, image=vit.image, epochs=EPOCHS, warmup_epochs=0.5, batch=BATCH)


def _frozen(config: Frozen) -> Frozen:
    return replace(config, encoder=tiny_vit(config.encoder), image=tiny_vit(config.encoder).image)


def _detector(config: MaskRCNNConfig) -> MaskRCNNConfig:
    vitdet = replace(config.vitdet, patch=config.vitdet.patch and config.vitdet.patch // 2, channels=16)
    if vitdet.global_blocks:  # of the depths of published encoders
        vitdet = replace(vitdet, global_blocks=(1, 3))
    if vitdet.window is not None and vitdet.window > 14:
        vitdet = replace(vitdet, window=14)
    parts = min(config.compute.accumulate, 2)
    encoder = tiny_vit(config.encoder, depth=4)
    if vitdet.patch and vitdet.patch != encoder.patch:  # ViT-H's patches of 14 pixels are resampled to 16
        encoder = replace(encoder, image=math.lcm(encoder.patch, vitdet.patch))
    return replace(
        config,
        encoder=encoder,
        vitdet=vitdet,
        heads=replace(config.heads, channels=16, fc=32),
        image=DETECTOR_SIDE * config.image // 1024,
        steps=3,
        batch=2 * parts,
        warmup=1.0,
        milestones=(2,),
        shown=1,
        compute=replace(config.compute, accumulate=parts),
    )


def _segmenter(config: UPerNetConfig | LinearSegmentationConfig) -> Any:
    """An eighth of all pixels, and 12 blocks, which iBOT's head names."""
    augment = replace(config.augment, long=config.augment.long // 8)
    small = replace(
        config,
        encoder=tiny_vit(config.encoder, depth=12),
        image=config.image // 8,
        augment=augment,
        inference=replace(config.inference, long=config.inference.long // 8),
        steps=3,
        batch=4,
        warmup=1,
        shown=1,
    )
    if isinstance(small, UPerNetConfig):
        return replace(small, heads=replace(small.heads, channels=16, aux_channels=16))
    return small


def _patches(config: PatchConfig) -> PatchConfig:
    vit = tiny_vit(config.encoder)
    return replace(config, encoder=vit, image=vit.image)


SHRINK = {
    Pretrain: _pretrain,
    Finetune: _trained,
    Linear: _trained,
    FastLinear: _fast_linear,
    Frozen: _frozen,
    Classify: lambda config: config,  # its sizes are the classifier's
    MaskRCNNConfig: _detector,
    UPerNetConfig: _segmenter,
    LinearSegmentationConfig: _segmenter,
    PatchKnnConfig: _patches,
    PatchLogisticConfig: _patches,
}
