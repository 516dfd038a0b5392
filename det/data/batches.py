"""Training and validation samples of a COCO split, and their batches in the form of `det.model.mask_rcnn`.

Images stay uint8 and are padded at the bottom and the right to the largest of their batch; the model normalises them
and pads to its square. Padding to the full square here would triple the bytes passed between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.det.config import Augment
from mimbench.det.data.augment import (
    Placement,
    Size,
    boxes_around,
    draw_jitter,
    fitted,
    jittered,
    place_bitmap,
    place_boxes,
    place_polygons,
    render,
)
from mimbench.det.data.coco import CocoSplit
from mimbench.det.model.masks import InstanceMasks

THINNEST = 1e-5  # pixels; detectron2's threshold for an empty box

Target = dict[str, Any]  # "boxes" float32 (T, 4), "labels" int64 (T,), optionally "masks" InstanceMasks (T)


class TrainingImages(Dataset[tuple[Tensor, Target]]):
    """Augmented images with their objects; images without an object (crowd regions do not count) are skipped."""

    def __init__(self, split: CocoSplit, augment: Augment, side: int, masks: bool = True) -> None:
        """`side`: side of the square that images fit into; with `masks` false, targets are the file's boxes.

        Raises:
            ValueError: if no image has an object.
        """
        self.split, self.augment, self.side = split, augment, side
        self.placed = placed_objects if masks else placed_boxes
        self.images = split.with_objects()
        if not len(self.images):
            raise ValueError(
                f"{split.files.annotations} has no image with an object to train on; crowd regions do not count"
            )

    def __len__(self) -> int:
        return len(self.images)

    def image_name(self, number: int) -> str:
        """Return the file of item `number`."""
        return self.split.paths.text(int(self.images[number]))

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        index = int(self.images[number])
        placement = jittered(self.split.size(index), draw_jitter(self.augment), self.side)
        return render(self.split.read_image(index), placement), self.placed(self.split, index, placement)


def placed_objects(split: CocoSplit, index: int, placement: Placement) -> Target:
    """Return the objects of image `index` after `placement`, with tight boxes around the clipped masks."""
    labels, shapes = split.objects(index)
    polygons = iter(place_polygons([shape for shape in shapes if isinstance(shape, list)], placement))
    placed = [next(polygons) if isinstance(shape, list) else place_bitmap(shape, placement) for shape in shapes]
    boxes = boxes_around(placed)
    left = _not_empty(boxes)
    masks = InstanceMasks([placed[i] for i in left.nonzero()[:, 0].tolist()])
    return {"boxes": boxes[left], "labels": torch.from_numpy(labels)[left], "masks": masks}


def placed_boxes(split: CocoSplit, index: int, placement: Placement) -> Target:
    """Return the objects of image `index` after `placement` without masks: boxes clipped to the window."""
    labels, corners = split.boxed_objects(index)
    boxes = place_boxes(corners, placement)
    left = _not_empty(boxes)
    return {"boxes": boxes[left], "labels": torch.from_numpy(labels)[left]}


def _not_empty(boxes_N4: Tensor) -> Tensor:
    return ((boxes_N4[:, 2:] - boxes_N4[:, :2]) > THINNEST).all(1)


class ValidationImages(Dataset[tuple[Tensor, int]]):
    """All images of a split (or `images`), resized to fit the square: (uint8 image, its index in the split)."""

    def __init__(self, split: CocoSplit, side: int, images: Sequence[int] | None = None) -> None:
        self.split, self.side = split, side
        self.images = range(len(split)) if images is None else images

    def __len__(self) -> int:
        return len(self.images)

    def image_name(self, number: int) -> str:
        """Return the file of item `number`."""
        return self.split.paths.text(int(self.images[number]))

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        index = self.images[number]
        return render(self.split.read_image(index), fitted(self.split.size(index), self.side)), index


def padded(images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Return images (3, h, w) as one uint8 tensor (B, 3, H, W), zero-padded at bottom and right, and their true sizes.

    The memory layout is channels-last, like that of decoded images: reordering would take half as long as resizing.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    shape = (len(images), max(h for h, _ in sizes), max(w for _, w in sizes), 3)
    batch = images[0].new_zeros(shape).permute(0, 3, 1, 2)
    for place, image, (height, width) in zip(batch, images, sizes, strict=True):
        place[:, :height, :width] = image
    return batch, sizes


def training_batch(samples: Sequence[tuple[Tensor, Target]]) -> dict[str, Any]:
    """Return {"images", "sizes", "targets"} in the form of `det.model.mask_rcnn`."""
    images, sizes = padded([image for image, _ in samples])
    return {"images": images, "sizes": sizes, "targets": [target for _, target in samples]}


def validation_batch(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, list[Size], list[int]]:
    """Return images, their sizes, and their indices in the split."""
    images, sizes = padded([image for image, _ in samples])
    return images, sizes, [index for _, index in samples]
