"""Estimate the cost of segmentation runs from the operations of encoder and heads. Does not import torch.

Multiply-adds for an image of 512 pixels, in 10^9: encoder 107 (ViT-B) and 362 (ViT-L); whole UperNet 374 and 836 with
channels mixed at low resolution, 607 and 1,249 without. A training step counts as three forward passes.
"""

from __future__ import annotations

from mimbench.engine.run.cost import Cost, of_operations
from mimbench.seg.config import LinearSegmentationConfig, Segmentation, UPerNetConfig

ENCODER = {768: 107.0, 1024: 362.0}  # width -> 10^9 multiply-adds at 512 pixels, patch 16
UPERNET = {768: (606.8, 374.0), 1024: (1248.8, 836.0)}  # plain, and with `fused_head`
ADE_IMAGES = 20_210


def cost(config: Segmentation) -> Cost | None:
    """Return the cost of a run; None if the encoder's width is not in the table."""
    width = config.encoder.width
    if width not in ENCODER:
        return None
    area = (config.image / 512) ** 2
    if isinstance(config, UPerNetConfig):
        macs = UPERNET[width][int(config.fused_head)] * 3 * config.steps * config.batch
    elif isinstance(config, LinearSegmentationConfig):
        macs = ENCODER[width] * config.steps * config.batch
    else:
        macs = ENCODER[width] * ADE_IMAGES
    return of_operations(2e9 * macs * area)
