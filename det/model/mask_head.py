"""The mask head: one 2M x 2M mask per class for each region; detectron2's names, arithmetic and initialisation."""

# R region, C channel, K class, M side of a mask

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.det.config import Heads
from mimbench.det.model.boxes import at_least_float32
from mimbench.det.model.conv_head import ConvHead, init_conv


class MaskHead(ConvHead):
    """Maps regions' features (R, C, side, side) to mask logits (R, K, 2 * side, 2 * side)."""

    def __init__(self, channels: int, options: Heads, classes: int) -> None:
        super().__init__(channels, options, "mask_fcn")
        channels = self.channels
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        init_conv(self.deconv)
        self.predictor = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    @staticmethod
    def side(pooled: int) -> int:
        """Return the side of a mask of features of side `pooled`."""
        return 2 * pooled

    def forward(self, regions_RCMM: Tensor, label_R: Tensor) -> Tensor:
        """Return logits (R, 2 * side, 2 * side) of the mask of each region's class `label_R`."""
        logits_RKMM = self.predictor(self.deconv(self.convolve(regions_RCMM)).relu_())
        return logits_RKMM[torch.arange(len(label_R), device=label_R.device), label_R]


def mask_loss(logits_RMM: Tensor, target_RMM: Tensor, weight_R: Tensor) -> Tensor:
    """Return the mean binary cross entropy over the cells of each region, weighted by region (loss_weights.py).

    Without regions it is 0 with a gradient of 0.
    """
    if not len(logits_RMM):
        return logits_RMM.sum() * 0
    logits = at_least_float32(logits_RMM)
    missed_RMM = F.binary_cross_entropy_with_logits(logits, target_RMM.to(logits.dtype), reduction="none")
    return (missed_RMM.mean((1, 2)) * weight_R).sum()
