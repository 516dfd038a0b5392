"""The computed cost of an evaluation on ImageNet: the operations of all images seen. Does not import torch."""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.operations import encoder_operations
from mimbench.cls.config import Classification, Finetune, Frozen, Linear
from mimbench.engine.run.cost import IMAGENET, IMAGENET_VAL, Cost, of_operations


def cost(config: Classification) -> Cost | None:
    """Return the cost of all epochs and their evaluations; None for configs that only evaluate a classifier."""
    if isinstance(config, Finetune):
        return of_operations(_forward(config) * config.epochs * (3 * IMAGENET + IMAGENET_VAL))
    if isinstance(config, Linear):  # each image is seen once, or once per epoch with new crops
        passes = config.epochs if config.views == "augmented" else 1
        return of_operations(_forward(config) * (passes * IMAGENET + IMAGENET_VAL))
    if isinstance(config, Frozen):
        return of_operations(_forward(config) * (IMAGENET + IMAGENET_VAL))
    return None


def _forward(config: Finetune | Linear | Frozen) -> float:
    return encoder_operations(replace(config.encoder, image=config.image))
