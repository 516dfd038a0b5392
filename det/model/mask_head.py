"""The mask head: one 2M x 2M mask per class for each region; detectron2's names, arithmetic and initialisation."""

# R region, C channel, K class, M side of a mask

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.backbones.pyramid import ConvNorm
from mimbench.det.config import Heads
from mimbench.det.model.box_head import init_conv
from mimbench.det.model.boxes import at_least_float32


class MaskHead(nn.Module):
    """Maps regions' features (R, C, side, side) to mask logits (R, K, 2 * side, 2 * side)."""

    def __init__(self, channels: int, options: Heads, classes: int) -> None:
        """`options.convs` 3x3 convolutions of width `options.channels`, each followed by a norm and a ReLU."""
        super().__init__()
        self.hidden = options.convs
        for index in range(options.convs):
            layer = ConvNorm(channels, options.channels, 3)
            init_conv(layer)
            self.add_module(f"mask_fcn{index + 1}", layer)
            channels = options.channels
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        init_conv(self.deconv)
        self.predictor = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, regions_RCMM: Tensor, label_R: Tensor) -> Tensor:
        """Return logits (R, 2 * side, 2 * side) of the mask of each region's class `label_R`."""
        for index in range(self.hidden):
            regions_RCMM = self.get_submodule(f"mask_fcn{index + 1}")(regions_RCMM).relu_()
        logits_RKMM = self.predictor(self.deconv(regions_RCMM).relu_())
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
