"""The simple feature pyramid of ViTDet: every level is computed from the encoder's last map.

A level is the map resized to the level's resolution (two transposed convolutions for 4, one for 2, nothing for 1,
max-pooling below), then a 1x1 and a 3x3 convolution, each with a norm over channels and no activation. One more level
takes every second cell of the coarsest, which halves the resolution. Names are those of detectron2's
`SimpleFeaturePyramid`: `simfp_{log2 of the stride}.*`, and `net.*` for the encoder.
"""

# B image, C channel

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.backbones.vitdet import ViTDet

REGION = 14 * 14  # cells of a map; up to this size, convolutions on a CPU train faster with channels last


def suited(maps_BCHW: Tensor) -> Tensor:
    """Return the maps in the memory format in which a convolution is fastest.

    With channels last, the backward pass of a 3x3 convolution on a CPU takes 1.5 times as long; the forward pass is a
    fifth faster, and so is everything on the small maps of regions.
    """
    large = maps_BCHW.shape[2] * maps_BCHW.shape[3] > REGION
    if large and maps_BCHW.device.type == "cpu" and torch.is_grad_enabled():
        return maps_BCHW.contiguous()
    return maps_BCHW


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W); detectron2's `LN`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Normalise the maps; the shape is unchanged, in channels-last memory format."""
        return super().forward(maps_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Conv2d):
    """A convolution with an odd kernel that keeps the resolution, without bias, then a norm over channels, `norm.*`."""

    def __init__(self, channels: int, out_channels: int, side: int) -> None:
        super().__init__(channels, out_channels, side, padding=side // 2, bias=False)
        self.norm = ChannelNorm(out_channels)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Return maps (B, out_channels, H, W)."""
        return self.norm(super().forward(suited(maps_BCHW)))


class SimpleFeaturePyramid(nn.Module):
    """Images (B, 3, H, W), normalised, to maps (B, channels, H / stride, W / stride), finest first."""

    def __init__(self, net: ViTDet, channels: int = 256, scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5)) -> None:
        """Args:
        net: the encoder.
        channels: of every level.
        scales: resolutions of the levels relative to the encoder's map; each is half the one before. One more level
            at half the last resolution is always added.

        Raises:
            ValueError: if the scales are not such powers of 2, or a stride is not a power of 2.
        """
        super().__init__()
        self.net = net
        strides = [net.vit.patch / scale for scale in scales]
        if max(scales) > 4 or any(finer != 2 * coarser for finer, coarser in pairwise(scales)):
            raise ValueError(f"scales={tuple(scales)} must begin at 4 or below and halve from one to the next")
        if any(stride < 1 or not math.log2(stride).is_integer() for stride in strides):
            raise ValueError(
                f"patch={net.vit.patch} with scales={tuple(scales)} gives strides {strides}, not powers of 2; "
                "set a patch that is a power of 2 (16 for ViT-H), and a patch-14 encoder is resampled to it"
            )
        self.strides = (*(int(stride) for stride in strides), int(2 * strides[-1]))
        self._names = [f"simfp_{int(math.log2(stride))}" for stride in strides]
        for name, scale in zip(self._names, scales, strict=True):
            resized, width = _resizing(net.vit.width, scale)
            level = nn.Sequential(*resized, ConvNorm(width, channels, 1), ConvNorm(channels, channels, 3))
            self.add_module(name, level)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map per stride in `strides`."""
        last = self.net(images)
        maps = [self.get_submodule(name)(last) for name in self._names]
        return [*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2)]


def _resizing(width: int, scale: float) -> tuple[list[nn.Module], int]:
    """Return layers that resize a map of `width` channels by `scale`, and the number of output channels."""
    if scale == 4:
        half = nn.ConvTranspose2d(width, width // 2, 2, stride=2)
        quarter = nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2)
        return [half, ChannelNorm(width // 2), nn.GELU(), quarter], width // 4
    if scale == 2:
        return [nn.ConvTranspose2d(width, width // 2, 2, stride=2)], width // 2
    if scale == 1:
        return [], width
    return [nn.MaxPool2d(round(1 / scale))], width
