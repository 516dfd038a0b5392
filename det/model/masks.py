"""Instance masks: training targets cut from polygons and bitmaps, and predicted masks pasted into an image.

`InstanceMasks` holds COCO's annotations: an instance is a list of polygons, or a bitmap (a decoded RLE region).
`rasterise` returns the target of the mask head, equal bit for bit to detectron2's `PolygonMasks` and
`BitMasks` (structures/masks.py); `paste` is its `paste_masks_in_image` (layers/mask_ops.py).
"""

# R region of interest, M side of a mask, H and W image

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as coco_masks
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

Polygons = list[NDArray[np.float64]]  # each x0 y0 x1 y1 ..., at least 6 numbers
Bitmap = NDArray[np.bool_] | NDArray[np.uint8]  # (H, W)


class InstanceMasks:
    """The masks of the objects in one image; always on the CPU, even if boxes are on another device."""

    def __init__(self, instances: Sequence[Polygons | Bitmap]) -> None:
        """An instance is a list of polygons in pixels of the image, or a bitmap (H, W) of the whole image."""
        self.instances = list(instances)

    def __len__(self) -> int:
        return len(self.instances)

    def rasterise(self, instance_R: Tensor, boxes_R4: Tensor, side: int) -> Tensor:
        """Return the part of instance `instance_R[r]` inside `boxes_R4[r]` as a bool mask: (R, side, side).

        The result is on the device of the boxes.
        """
        boxes = boxes_R4.detach().cpu().float()
        chosen = [self.instances[i] for i in instance_R.tolist()]
        drawn = [r for r, mask in enumerate(chosen) if isinstance(mask, list) and mask]
        mapped = [r for r, mask in enumerate(chosen) if not isinstance(mask, list)]
        target_RMM = torch.zeros(len(chosen), side, side, dtype=torch.bool)
        if drawn:
            target_RMM[drawn] = _draw([chosen[r] for r in drawn], boxes[drawn].numpy(), side)  # type: ignore[misc]
        if mapped:
            target_RMM[mapped] = self._crop(instance_R.cpu()[mapped], boxes[mapped], side)
        return target_RMM.to(boxes_R4.device)

    def _crop(self, instance_R: Tensor, boxes_R4: Tensor, side: int) -> Tensor:
        """Average bitmaps over the cells of a grid on each box: bool (R, side, side)."""
        unique, which_R = instance_R.unique(return_inverse=True)
        bitmaps = torch.from_numpy(np.stack([self.instances[i] for i in unique.tolist()])).float()[:, None]
        regions_R5 = torch.cat([which_R[:, None].float(), boxes_R4], dim=1)
        return roi_align(bitmaps, regions_R5, side, 1.0, 0, True)[:, 0] >= 0.5


def _draw(polygons: list[Polygons], boxes_R4: NDArray[np.float32], side: int) -> Tensor:
    """Draw the union of each box's polygons on a grid over the box, by COCO's rules: bool (R, side, side)."""
    origin_R2 = boxes_R4[:, :2]
    # 0.1 px and float32: detectron2's protection against thin boxes, and the precision of its scale
    scale_R2 = np.float32(side) / np.maximum(boxes_R4[:, 2:] - origin_R2, np.float32(0.1))
    placed = [
        ((polygon.reshape(-1, 2) - origin) * scale).ravel()
        for instance, origin, scale in zip(polygons, origin_R2, scale_R2, strict=True)
        for polygon in instance
    ]
    grids_MMP = coco_masks.decode(coco_masks.frPyObjects(placed, side, side))
    first = np.cumsum([0] + [len(instance) for instance in polygons[:-1]])
    union_MMR = np.maximum.reduceat(grids_MMP, first, axis=2)
    return torch.from_numpy(np.ascontiguousarray(union_MMR.transpose(2, 0, 1))).bool()


def paste(masks_RMM: Tensor, boxes_R4: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Paste mask probabilities on their boxes into images of `size` (h, w), above `threshold`: bool (R, h, w).

    Bilinear, with cells as areas (a box from 0 to 28 maps cell k to pixel k), and zero outside the mask.
    """
    image_RHW = torch.zeros(len(masks_RMM), *size, dtype=torch.bool, device=masks_RMM.device)
    for image, mask, box in zip(image_RHW, masks_RMM, boxes_R4, strict=True):
        (left, right), (top, bottom) = _reach(box[0::2], size[1]), _reach(box[1::2], size[0])
        if left < right and top < bottom:
            x = _cells(left, right, box[0], box[2]).expand(bottom - top, -1)
            y = _cells(top, bottom, box[1], box[3])[:, None].expand(-1, right - left)
            grid = torch.stack([x, y], dim=-1)[None].to(mask.dtype)
            sampled = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
            image[top:bottom, left:right] = sampled >= threshold
    return image_RHW


def _reach(interval: Tensor, limit: int) -> tuple[int, int]:
    """Return the range of pixels that an interval of a box covers, with one more on each side."""
    low, high = interval.tolist()
    return max(math.floor(low) - 1, 0), min(math.ceil(high) + 1, limit)


def _cells(first: int, last: int, low: Tensor, high: Tensor) -> Tensor:
    """Return the centres of pixels first..last-1 in coordinates from -1 at `low` to 1 at `high`."""
    return cells_at(torch.arange(first, last, device=low.device, dtype=torch.float32), low, high)


def cells_at(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the centres of `pixels` (integers as float32) in coordinates from -1 at `low` to 1 at `high`."""
    return (pixels + 0.5 - low) / (high - low) * 2 - 1
