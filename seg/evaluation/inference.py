"""Predict label maps: by sliding windows or on the whole image, at several sizes, also mirrored.

    predicted = predict(model, views, size, config, side)      # uint8 (H, W), at the size of the label map

Windows are mmsegmentation's: `stride` pixels apart, the last at the edge. Logits are enlarged to the window, added up
and divided by the number of windows that contain each pixel, then resized to the label map's size. With several views
the softmax outputs are averaged. The windows of an image form batches.

If a model accepts only one size (relative positions), a smaller image is padded with the mean colour at the bottom and
the right, as in training; the originals fail there.

Shapes: K class, H x W image, h x w the size of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.engine.data.images import normalise
from mimbench.seg.config import Inference
from mimbench.seg.data.batches import View, view_size
from mimbench.seg.model.enlarge import Rows, enlarged
from mimbench.seg.model.segmenter import Segmenter

WINDOWS = 8  # windows in one batch
PIXELS = 65_536  # pixels whose logits are enlarged at a time


class Sided(Protocol):
    """A model that may accept only one size of images."""

    def fixed_side(self) -> int | None:
        """Return the only image side that it accepts; None if it accepts any."""
        ...


@torch.no_grad()
def predict(model: Segmenter, views: Sequence[View], size: tuple[int, int], config: Inference, side: int) -> Tensor:
    """Return the class of each pixel, int64 (H, W), from the `views` of an image, on the model's device."""
    single = len(views) == 1 and not config.flip
    summed: Tensor | None = None
    for view in views:
        image = normalise(view.image[None], model.mean, model.std)
        for mirrored in (False, True) if config.flip else (False,):
            logits = logits_of(model, image.flip(3) if mirrored else image, config, side)
            if single:
                return _most_likely(logits[0], size)
            logits = enlarged(logits, size)
            logits = logits.flip(3) if mirrored else logits
            scores = view.weight * logits.softmax(1)
            summed = scores if summed is None else summed + scores
    assert summed is not None
    return summed[0].argmax(0)


def _most_likely(logits_Khw: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel at `size`, computed some rows at a time."""
    if tuple(logits_Khw.shape[1:]) == size:
        return logits_Khw.argmax(0)
    with torch.autocast(logits_Khw.device.type, enabled=False):
        rows = Rows(logits_Khw.shape[1:], size, max(PIXELS // size[1], 1), logits_Khw)
        return torch.cat([part.argmax(0) for _, part in rows.each(logits_Khw)])


def logits_of(model: Segmenter, image: Tensor, config: Inference, side: int) -> Tensor:
    """Return the logits (1, K, h, w) of a normalised image (1, 3, h, w), at its size.

    Raises:
        ValueError: if the mode is "whole" and the model accepts only another size.
    """
    height, width = image.shape[2:]
    multiple, fixed = model.patch_side(), model.fixed_side()
    if config.mode == "whole":
        if fixed is not None and (height, width) != (fixed, fixed):
            raise ValueError(_other_size(fixed, (height, width)))
        padded = _padded(image, _up(height, multiple), _up(width, multiple))
        return enlarged(model.logits(padded).to(image.dtype), padded.shape[2:])[:, :, :height, :width]
    window = [fixed or _up(min(side, length), multiple) for length in (height, width)]
    padded = _padded(image, max(height, window[0]), max(width, window[1]))
    stride = config.stride or round_down(side * 2 / 3)
    return slide(model, padded, (window[0], window[1]), stride)[:, :, :height, :width]


def require_views(model: Sided, size: tuple[int, int], config: Inference, side: int) -> None:
    """Refuse inference on whole images if an image of `size`, at one of the scales, does not fit the model.

    Raises:
        ValueError: if the mode is "whole" and the model accepts only another size.
    """
    fixed = model.fixed_side()
    if config.mode == "slide" or fixed is None:
        return
    for scale in config.scales:
        view = view_size(size, scale, config, side)
        if view != (fixed, fixed):
            raise ValueError(_other_size(fixed, view))


def _other_size(fixed: int, size: tuple[int, int]) -> str:
    return (
        f"inference.mode=whole: this model's relative positions fit only {fixed} x {fixed} pixels, but an image has "
        f"{size[1]} x {size[0]}; use inference.mode=slide"
    )


def round_down(stride: float) -> int:
    """Round a number of pixels down, to at least one: 341 for 512 x 2 / 3, 426 for 640 x 2 / 3."""
    return max(int(stride), 1)


def slide(model: Segmenter, image: Tensor, window: tuple[int, int], stride: int) -> Tensor:
    """Return the logits (1, K, h, w) of an image at least as large as the window, averaged over windows."""
    places = [
        (top, left)
        for top in window_starts(image.shape[2], window[0], stride)
        for left in window_starts(image.shape[3], window[1], stride)
    ]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, *image.shape[2:])
    for start in range(0, len(places), WINDOWS):
        chosen = places[start : start + WINDOWS]
        crops = torch.cat([image[:, :, top : top + window[0], left : left + window[1]] for top, left in chosen])
        logits = model.logits(crops)
        for (top, left), one in zip(chosen, logits.split(1), strict=True):
            added = enlarged(one.to(image.dtype), window)
            if total is None:
                total = _zeros_like(added, image.shape[2:])
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, :, rows, columns] += added
            count[:, :, rows, columns] += 1
    assert total is not None
    return total.div_(count)


def _zeros_like(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return zeros (1, K, h, w) in the memory order of `logits`; adding across two orders takes 19 times as long."""
    last = logits.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    shape = (1, logits.shape[1], *size)
    return torch.empty(shape, dtype=logits.dtype, device=logits.device, memory_format=order).zero_()


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of windows along an axis of `length` pixels, at least as long as the window."""
    steps = max(length - window + stride - 1, 0) // stride + 1
    return [min(step * stride, length - window) for step in range(steps)]


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """Pad with zeros (the mean colour) at the bottom and the right."""
    return F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))
