"""The pyramid, UPerHead and FCNHead of mmsegmentation 1.2.2, with its parameter names and initialisation.

    maps = Feature2Pyramid(768, patch=16)(backbone(images))     # strides 4, 8, 16, 32
    logits = UPerHead(768, 768, classes=150)(maps)              # at stride 4
    auxiliary = FCNHead(768, 256, classes=150)(maps[2])         # at stride 16

UPerHead's last 3 x 3 convolution takes four maps of `channels` channels, three of them enlarged from coarser maps. It
is 57 % of the arithmetic of a whole ViT-B segmenter. Enlarging and mixing channels commute. So with `fused` the
channels of each coarse map are mixed for the nine taps at the coarse size, then enlarged and shifted in one step: a
third of the multiplications, equal up to rounding.

Shapes: B image, C channels, h x w of a map, K class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.seg.model.enlarge import enlarged, shifted
from mimbench.seg.model.norm import SyncBatchNorm

Maps = Sequence[Tensor]  # (B, C, h, w), finest first


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU; mmcv's names and initialisation."""

    def __init__(self, source: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(source, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = SyncBatchNorm(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, source, h, w) to (B, channels, h, w)."""
        return F.relu(self.bn(self.conv(maps)))


class Feature2Pyramid(nn.Module):
    """Resize four maps of the same size to strides 4, 8, 16 and 32, for patches of about 16 (or 8) pixels."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.fine = patch <= 8
        if not self.fine:
            self.upsample_4x = nn.Sequential(
                nn.ConvTranspose2d(width, width, 2, 2),
                SyncBatchNorm(width),
                nn.GELU(),
                nn.ConvTranspose2d(width, width, 2, 2),
            )
        self.upsample_2x = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2))

    def forward(self, maps: Maps) -> list[Tensor]:
        """Resize maps (B, D, h, w) to 4h, 2h, h and h / 2; for small patches to 2h, h, h / 2 and h / 4."""
        first, second, third, fourth = (_laid_out(level) for level in maps)
        if self.fine:
            return [self.upsample_2x(first), second, _reduced(third, 2), _reduced(fourth, 4)]
        return [self.upsample_4x(first), self.upsample_2x(second), third, _reduced(fourth, 2)]


def _reduced(maps: Tensor, factor: int) -> Tensor:
    """Return the maximum of each square of `factor` positions; a map smaller than that becomes one position."""
    return F.max_pool2d(maps, (min(factor, maps.shape[2]), min(factor, maps.shape[3])))


def _laid_out(maps: Tensor) -> Tensor:
    """Return maps (B, D, h, w) in the memory order that suits this device and the presence of gradients.

    A ViT's maps hold all channels of a patch, then those of the next. In that order oneDNN takes three times as long
    for the gradient of a 3 x 3 kernel, but inference is faster. GPUs keep the order.
    """
    return maps.contiguous() if torch.is_grad_enabled() and maps.device.type == "cpu" else maps


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid on all, and a classifier of every position."""

    def __init__(
        self,
        width: int,
        channels: int,
        classes: int,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(width, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(width + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in range(3))
        self.fpn_bottleneck = ConvModule(4 * channels, channels, 3)
        _initialise_classifier(self.conv_seg)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits (B, K, h, w) at the size of the finest map."""
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self._pooled(maps[-1]))
        for level in (2, 1, 0):
            laterals[level] = laterals[level] + enlarged(laterals[level + 1], laterals[level].shape[2:])
        levels = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=False)] + [laterals[-1]]
        logits: Tensor = self.conv_seg(self.dropout(self._merged(levels)))
        return logits

    def _pooled(self, coarsest: Tensor) -> Tensor:
        pooled = [enlarged(module(coarsest), coarsest.shape[2:]) for module in self.psp_modules]
        mixed: Tensor = self.bottleneck(torch.cat([coarsest, *pooled], dim=1))
        return mixed

    def _merged(self, levels: Maps) -> Tensor:
        size = levels[0].shape[2:]
        if not self.fused:
            whole = torch.cat([enlarged(level, size) for level in levels], dim=1)
            mixed: Tensor = self.fpn_bottleneck(whole)
            return mixed
        kernels = self.fpn_bottleneck.conv.weight.chunk(4, dim=1)
        summed = F.conv2d(levels[0], kernels[0], padding=1)
        for level, kernel in zip(levels[1:], kernels[1:], strict=True):
            summed = summed + mixed_then_enlarged(level, kernel, (size[0], size[1]))
        return F.relu(self.fpn_bottleneck.bn(summed))


class FCNHead(nn.Module):
    """One 3 x 3 convolution and a classifier."""

    def __init__(self, width: int, channels: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.convs = nn.Sequential(ConvModule(width, channels, 3))
        _initialise_classifier(self.conv_seg)

    def forward(self, level: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of a map (B, D, h, w)."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(level)))
        return logits


def _initialise_classifier(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)


def mixed_then_enlarged(maps_BChw: Tensor, kernel_OC33: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a 3 x 3 convolution (padding 1) of `maps` enlarged to `size`: (B, O, H, W).

    Channels are mixed for each of the nine taps at the low resolution. Each tap is then enlarged and shifted by a fixed
    matrix along each axis (its zero rows are the padding); the taps of a column are summed between the two axes.
    """
    batch, _, height, width = maps_BChw.shape
    out = len(kernel_OC33)
    weight = kernel_OC33.permute(2, 3, 0, 1).reshape(9 * out, -1, 1, 1)  # tap by tap: row, column, channel
    taps = F.conv2d(maps_BChw, weight).view(batch, 3, 3, out, height, width)
    down_3Hh = shifted(height, size[0], taps.dtype, taps.device)
    across_3Ww = shifted(width, size[1], taps.dtype, taps.device)
    columns = torch.einsum("bijohw,jWw->biohW", taps, across_3Ww)
    return torch.einsum("biohW,iHh->boHW", columns, down_3Hh)
