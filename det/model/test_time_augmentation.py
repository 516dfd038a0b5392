"""Test-time augmentation: detect in several sizes and flips of an image, and merge the detections.

Like detectron2's `GeneralizedRCNNWithTTA`: the boxes of all views are mapped to the image, NMS is applied to them
together, and their masks are the mean over the views. Views are resized from the pixels of the single-view input.

    found = detections(model, images, seen, sizes, config.test_time_augmentation)  # a single pass without views

detectron2 computes the features of each view twice, for boxes and for masks; here they are computed once.
"""

# B image, N detection, M side of a mask

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimbench.det.config import TTA
from mimbench.det.data.augment import fitted
from mimbench.det.model.boxes import at_least_float32, image_corners
from mimbench.det.model.host import leaving, uploaded
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.model.nms import keep_best
from mimbench.det.model.roi_heads import Detections, Found
from mimbench.engine.data.pillow import resize_with_pillow

Size = tuple[int, int]  # height, width


def detections(
    model: MaskRCNN, images: Tensor, seen: Sequence[Size], sizes: Sequence[Size], views: TTA
) -> list[Detections]:
    """Return the detections of each image, in main memory, in pixels of its original; waits for the device.

    The arguments are those of `detections_leaving`.
    """
    return detections_leaving(model, images, seen, sizes, views)()


def detections_leaving(
    model: MaskRCNN, images: Tensor, seen: Sequence[Size], sizes: Sequence[Size], views: TTA
) -> Callable[[], list[Detections]]:
    """Start to detect; return the function that waits for the detections of each image, as `detections` returns them.

    Args:
        model: in eval mode.
        images: (B, 3, H, W) uint8, padded at the bottom and the right.
        seen: the true (h, w) of each of them.
        sizes: (h, w) of the originals.
        views: the sizes and flips.
    """
    if not views.sizes and not views.flip:
        found = model.detect(images, seen)
        return _leaving([one.scaled(*change) for one, *change in zip(found, seen, sizes, strict=True)])
    return _leaving(
        [
            in_views(model, image[:, : size[0], : size[1]], original, views)
            for image, size, original in zip(images, seen, sizes, strict=True)
        ]
    )


def _leaving(found: Sequence[Detections]) -> Callable[[], list[Detections]]:
    """Start to copy detections to main memory, as one tensor; return the function that waits for them."""
    counts, side = [len(one.scores) for one in found], found[0].masks.shape[-1]
    columns = [
        torch.cat([one.boxes, one.scores[:, None], one.labels[:, None], one.masks.flatten(1)], dim=1) for one in found
    ]
    packed = leaving(at_least_float32(torch.cat(columns)))
    types = [values.dtype for values in found[0]]

    def wait() -> list[Detections]:
        return [_unpacked(rows, side, types).without_empty() for rows in packed().split(counts)]

    return wait


def _unpacked(rows: Tensor, side: int, types: Sequence[torch.dtype]) -> Detections:
    columns = rows.split([4, 1, 1, side * side], dim=1)
    boxes, scores, labels, masks = (values.to(kind) for values, kind in zip(columns, types, strict=True))
    return Detections(boxes, scores[:, 0], labels[:, 0], masks.reshape(len(rows), side, side))


class _Look(NamedTuple):
    """One view and its features and detections."""

    size: Size
    flip: bool
    maps: list[Tensor]
    found: Found


@torch.no_grad()
def in_views(model: MaskRCNN, image: Tensor, size: Size, views: TTA) -> Detections:
    """Return merged detections of all views of `image` (3, h, w), uint8, in pixels of the original `size` (H, W)."""
    looks = [
        _look(model, view, flip)
        for side in views.sizes or (max(image.shape[1:]),)
        for view, flip in _pictures(image, side, views.flip)
    ]
    seen = (image.shape[1], image.shape[2])
    boxes_N4 = torch.cat([_brought(_brought(_mirrored(look), look.size, seen), seen, size) for look in looks])
    boxes_N4 = boxes_N4.clamp(min=0).minimum(image_corners([size], boxes_N4)[0])
    scores_N = torch.cat([look.found.scores for look in looks])
    label_N = torch.cat([look.found.labels for look in looks])
    keep, scores = keep_best(boxes_N4, scores_N, label_N, model.roi_heads.options)
    united = Found(boxes_N4[keep], scores, label_N[keep])
    masks = torch.stack([_masks(model, look, united, seen, size) for look in looks]).mean(0)
    return Detections(*united, masks).rescaled(size, size)


def _pictures(image: Tensor, side: int, flip: bool) -> list[tuple[Tensor, bool]]:
    """Return the image with a longest side of `side` pixels, and if `flip` also mirrored; resized as in PIL."""
    height, width = fitted((image.shape[1], image.shape[2]), side).resized
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    resized = np.array(resize_with_pillow(picture, width, height, Image.Resampling.BILINEAR))
    view = torch.from_numpy(resized).permute(2, 0, 1).to(image.device)
    return [(view, False), (view.flip(2), True)] if flip else [(view, False)]


def _look(model: MaskRCNN, view: Tensor, flip: bool) -> _Look:
    size = (view.shape[1], view.shape[2])
    step = model.backbone.strides[-2]  # larger views use a larger square and resized relative positions
    maps = model.features(view[None], [size], max(model.image, -(-max(size) // step) * step))
    proposals, _ = model.proposal_generator(maps, [size], None)
    return _Look(size, flip, maps, model.roi_heads.find(maps, proposals, [size])[0])


def _mirrored(look: _Look, boxes_N4: Tensor | None = None) -> Tensor:
    """Return boxes (by default the view's detections) mirrored if the view is mirrored."""
    boxes_N4 = look.found.boxes if boxes_N4 is None else boxes_N4
    if not look.flip:
        return boxes_N4
    width = look.size[1]
    return torch.stack([width - boxes_N4[:, 2], boxes_N4[:, 1], width - boxes_N4[:, 0], boxes_N4[:, 3]], 1)


def _brought(boxes_N4: Tensor, size: Size, to: Size) -> Tensor:
    """Rescale boxes from an image of one (h, w) to another."""
    return boxes_N4 * uploaded([to[1] / size[1], to[0] / size[0]] * 2, boxes_N4)


def _masks(model: MaskRCNN, look: _Look, united: Found, seen: Size, size: Size) -> Tensor:
    """Return one view's mask probabilities (N, M, M) of `united`, whose boxes are in the original image."""
    boxes_N4 = _mirrored(look, _brought(_brought(united.boxes, size, seen), seen, look.size))
    masks_NMM = model.roi_heads.with_masks(look.maps, [united._replace(boxes=boxes_N4)])[0].masks
    return masks_NMM.flip(2) if look.flip else masks_NMM
