"""Features of regions: RoIAlign on the pyramid level for each region's size.

detectron2's `ROIPooler` with `ROIAlignV2` (half-pixel aligned, as many samples per cell as the cell has pixels).
torchvision's operator is used, but its backward is slow on a CPU. RoIAlign is a linear map of rows times a linear map
of columns, so small maps with gradients use matrix products instead: equal up to rounding, and a quarter faster when
training a small detector.
"""

# B image, R region of interest, C channel, H and W map, M side of the output, S sample within a cell

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from mimbench.det.model.boxes import at_least_float32
from mimbench.det.model.host import read

SMALL = 64 * 64  # maps up to so many cells are faster with matrix products on a CPU


def with_image(boxes: Sequence[Tensor]) -> Tensor:
    """Return the boxes (R, 4) of all images as one tensor (R, 5) with the image's index in the first column."""
    return torch.cat([F.pad(one, (1, 0), value=float(image)) for image, one in enumerate(boxes)])


class RegionPooler:
    """Pools M x M features from the pyramid for each region."""

    def __init__(
        self, side: int, strides: Sequence[int], canonical_size: float = 224, canonical_level: int = 4
    ) -> None:
        """Regions of `canonical_size` pixels are pooled from the level of stride 2**canonical_level.

        `strides` are those of the maps: powers of 2, each twice the one before.
        """
        self.side, self.strides = side, tuple(strides)
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    def levels(self, boxes_R4: Tensor) -> Tensor:
        """Return the index of each region's map: floor(canonical_level + log2(side / canonical_size)), clamped."""
        size_R = ((boxes_R4[:, 2] - boxes_R4[:, 0]) * (boxes_R4[:, 3] - boxes_R4[:, 1])).sqrt()
        level_R = torch.floor(self.canonical_level + torch.log2(size_R / self.canonical_size + 1e-8))
        finest = int(math.log2(self.strides[0]))
        return level_R.clamp(finest, finest + len(self.strides) - 1).long() - finest

    def counts(self, level_R: Tensor) -> list[Tensor]:
        """Return the number of regions of each map, on the device."""
        return [(level_R == level).sum() for level in range(len(self.strides))]

    def __call__(self, maps: Sequence[Tensor], regions_R5: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return features (R, C, M, M) of regions (R, 5): index of the image, ascending, and a box in input pixels.

        There may be more `maps` (B, C, H, W) than strides; the extra maps are not used. `counts` are those of
        `self.counts`, on the host; they are read if they are not given.
        """
        level_R = self.levels(regions_R5[:, 1:])
        order_R = level_R.argsort(stable=True)
        found = read(self.counts(level_R)) if counts is None else list(counts)
        parts = []
        for map_BCHW, stride, place in zip(maps, self.strides, order_R.split(found), strict=False):
            features = at_least_float32(map_BCHW)
            parts.append(align(features, regions_R5[place].to(features.dtype), self.side, stride))
        back = order_R.argsort()
        # channels last, like all maps here: makes the heads' convolutions up to twice as fast on a CPU
        return torch.cat(parts)[back].contiguous(memory_format=torch.channels_last)


def align(features_BCHW: Tensor, regions_R5: Tensor, side: int, stride: int) -> Tensor:
    """Return RoIAlign of regions in pixels, ordered by image, on a map of stride `stride`: (R, C, side, side)."""
    on_cpu, small = features_BCHW.device.type == "cpu", features_BCHW[0, 0].numel() <= SMALL
    if on_cpu and small and torch.is_grad_enabled():
        return align_by_products(features_BCHW, regions_R5, side, stride)
    return roi_align(features_BCHW, regions_R5, side, 1 / stride, 0, True)


def align_by_products(features_BCHW: Tensor, regions_R5: Tensor, side: int, stride: int) -> Tensor:
    """Return RoIAlign as matrix products: the rows of each image for all its regions at once, then the columns."""
    images, channels, height, width = features_BCHW.shape
    rows_RMH = _shares(regions_R5[:, 2], regions_R5[:, 4], side, stride, height)
    columns_RMW = _shares(regions_R5[:, 1], regions_R5[:, 3], side, stride, width)
    counts = regions_R5[:, 0].long().bincount(minlength=images).tolist()
    features_BHX = features_BCHW.permute(0, 2, 3, 1).flatten(2)  # X: column and channel
    drawn = [rows.flatten(0, 1) @ of for rows, of in zip(rows_RMH.split(counts), features_BHX, strict=True)]
    rows_RMWC = torch.cat(drawn).view(len(regions_R5), side, width, channels)
    return (columns_RMW[:, None] @ rows_RMWC).permute(0, 3, 1, 2)


def _shares(low_R: Tensor, high_R: Tensor, side: int, stride: int, length: int) -> Tensor:
    """Return the weight of each map cell in each output cell along one axis, (R, side, length).

    A region from `low` to `high` pixels is divided into `side` cells. Each has as many evenly spaced samples as it
    covers map cells. A sample is interpolated between the two nearest centres, or uses the outermost one.
    """
    start_R, size_R = low_R / stride - 0.5, (high_R - low_R) / stride
    samples_R = torch.ceil(size_R / side)
    sample_S = torch.arange(int(samples_R.max()) if len(samples_R) else 0, device=low_R.device)
    spread_R1 = samples_R[:, None].clamp(min=1)  # an empty region has no samples
    within_RS = (sample_S + 0.5) / spread_R1
    cell_M = torch.arange(side, device=low_R.device)
    at_RMS = start_R[:, None, None] + (cell_M[:, None] + within_RS[:, None]) * (size_R / side)[:, None, None]
    counted_RMS = (sample_S < samples_R[:, None])[:, None] & (at_RMS >= -1) & (at_RMS <= length)
    at_RMS = at_RMS.clamp(0, length - 1)
    before_RMS = at_RMS.floor()
    weight_RMS = counted_RMS / spread_R1[:, None]
    share_RMS = weight_RMS * (at_RMS - before_RMS)
    shares = low_R.new_zeros(len(low_R), side, length)
    index_RMS = before_RMS.long()
    shares.scatter_add_(2, index_RMS, weight_RMS - share_RMS)
    return shares.scatter_add_(2, (index_RMS + 1).clamp(max=length - 1), share_RMS)
