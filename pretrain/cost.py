"""Estimate the cost of a pretraining: three forward passes' operations for every image seen.

Encoder and decoder are counted for the patches they see; a frozen teacher's pass counts a third, because it has no
backward pass. Input, norms and the optimiser are left out. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mimbench.backbones.config import SIZES
from mimbench.backbones.operations import block_operations, encoder_operations
from mimbench.engine.run.cost import IMAGENET, Cost, of_operations
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, MaskAlignConfig, Pretrain, SimMIMConfig


def cost(config: Pretrain) -> Cost | None:
    """Return the cost of all epochs on ImageNet; None for a method whose operations are unknown."""
    forward = operations(config)
    return None if forward is None else of_operations(3 * forward * config.epochs * IMAGENET)


def operations(config: Pretrain) -> float | None:
    """Return the operations of a forward pass of one image, encoder and decoder; None for an unknown method."""
    count = _OPERATIONS.get(type(config.method))
    if count is None:
        return None
    patches = config.encoder.grid**2
    visible = patches - int(patches * config.masking.hidden_share)
    return count(config, visible, int(patches * config.masking.predicted_share))


def _crossmae(config: Pretrain, visible: int, predicted: int) -> float:
    assert isinstance(config.method, CrossMAEConfig)
    vit, width, memory = config.encoder, config.method.width, visible + 1
    queries = 20.0 * predicted * width**2 + 4.0 * memory * vit.width * width
    decoder = config.method.depth * (queries + 4.0 * predicted * memory * width)
    return encoder_operations(vit, visible + 1) + decoder


def _mae(config: Pretrain, visible: int, predicted: int) -> float:
    assert isinstance(config.method, MAEConfig)
    vit, width = config.encoder, config.method.width
    blocks = block_operations(width, config.method.depth, visible + predicted + 1)
    return encoder_operations(vit, visible + 1) + 2.0 * visible * vit.width * width + blocks


def _simmim(config: Pretrain, visible: int, predicted: int) -> float:
    return encoder_operations(config.encoder)  # the encoder sees mask tokens instead of hidden patches


def _maskalign(config: Pretrain, visible: int, predicted: int) -> float:
    return encoder_operations(config.encoder, visible + 1) + encoder_operations(SIZES["B"]) / 3


_OPERATIONS: dict[type[Any], Callable[[Pretrain, int, int], float]] = {
    CrossMAEConfig: _crossmae,
    MAEConfig: _mae,
    SimMIMConfig: _simmim,
    MaskAlignConfig: _maskalign,
}
