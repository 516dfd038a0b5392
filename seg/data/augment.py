"""Augment training images as mmsegmentation does: scale jitter, crop, flip and photometric distortion.

Random numbers come from NumPy's generator in mmsegmentation's order, so the same state gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mimbench.seg.config import Augment
from mimbench.seg.data.pixels import (
    Image,
    Labels,
    Size,
    from_hsv,
    histogram,
    look_up,
    look_up_channel,
    mirrored,
    rescaled_size,
    resize_image,
    resize_labels,
    to_hsv,
)

IGNORED = 255
TRIES = 10  # crops tested against `cat_max_ratio`; after the last failure one more is drawn and used untested
BRIGHTNESS = 32
FACTOR = (0.5, 1.5)  # of contrast and saturation
HUE = 18  # of 180; excluded at the upper end
_LEVELS = np.arange(256, dtype=np.float32)


def augmented(image: Image, labels: Labels, config: Augment, side: int) -> tuple[Image, Labels]:
    """Return a random crop, at most `side` x `side`, of an image and its label map at a random scale."""
    size = jittered_size((labels.shape[0], labels.shape[1]), draw_scale(config), config, side)
    image, labels = cropped(image, labels, size, resize_image, config, side)
    if config.flip and np.random.random_sample() < config.flip:
        image, labels = mirrored(image), mirrored(labels)
    if config.photometric:
        image = photometric_distortion(np.ascontiguousarray(image))
    return image, labels


def draw_scale(config: Augment) -> float:
    """Return a random scale between `config.smallest` and `config.largest`."""
    return np.random.random_sample() * (config.largest - config.smallest) + config.smallest


def jittered_size(size: Size, ratio: float, config: Augment, side: int) -> Size:
    """Return the size of an image at scale `ratio`."""
    short = side if config.short is None else config.short
    return rescaled_size(size, int(config.long * ratio), int(short * ratio))


def cropped(
    image: Image,
    labels: Labels,
    size: Size,
    resize: Callable[[Image, Size], Image],
    config: Augment,
    side: int,
) -> tuple[Image, Labels]:
    """Return a random crop, at most `side` x `side`, of an image and its label map resized to `size`.

    The labels decide whether a crop is accepted.
    """
    resized = resize_labels(labels, size)
    top, left = draw_crop(resized, side, config.cat_max_ratio)
    rows, columns = slice(top, top + side), slice(left, left + side)
    return resize(image, size)[rows, columns], resized[rows, columns]


def draw_crop(labels: Labels, side: int, cat_max_ratio: float) -> tuple[int, int]:
    """Return top and left of a crop; one with several classes, each below `cat_max_ratio`, if found in `TRIES`."""
    corner = _corner(labels.shape, side)
    if cat_max_ratio < 1:
        for _ in range(TRIES):
            if varied(labels[corner[0] : corner[0] + side, corner[1] : corner[1] + side], cat_max_ratio):
                break
            corner = _corner(labels.shape, side)
    return corner


def _corner(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    top = np.random.randint(0, max(shape[0] - side, 0) + 1)
    return top, np.random.randint(0, max(shape[1] - side, 0) + 1)


def varied(labels: Labels, cat_max_ratio: float) -> bool:
    """Whether there are several classes, each on less than `cat_max_ratio` of the pixels that are not ignored."""
    counts = histogram(labels)[:IGNORED]
    return bool((counts > 0).sum() > 1 and counts.max() / counts.sum() < cat_max_ratio)


def photometric_distortion(image: Image) -> Image:
    """Change brightness, contrast, saturation and hue of an image as mmsegmentation does (`distorted`)."""
    return distorted(image, saturated, lambda one: hue_turned(one, np.random.randint(-HUE, HUE)))


def distorted(image: Image, saturate: Callable[[Image, float], Image], turn_hue: Callable[[Image], Image]) -> Image:
    """Change brightness, contrast, saturation and hue, each with probability 1/2; each step truncates to uint8.

    Args:
        image: uint8 (H, W, 3), in the order of colours that the two functions expect.
        saturate: multiplies the saturation of an image by a factor.
        turn_hue: draws an angle and turns the hue of an image by it.
    """
    draw = np.random
    if draw.randint(2):
        image = look_up(image, linear(1.0, draw.uniform(-BRIGHTNESS, BRIGHTNESS)))
    contrast_first = draw.randint(2) == 1
    if contrast_first and draw.randint(2):
        image = look_up(image, linear(draw.uniform(*FACTOR), 0.0))
    if draw.randint(2):
        image = saturate(image, draw.uniform(*FACTOR))
    if draw.randint(2):
        image = turn_hue(image)
    if not contrast_first and draw.randint(2):
        image = look_up(image, linear(draw.uniform(*FACTOR), 0.0))
    return image


def linear(factor: float, offset: float) -> NDArray[np.uint8]:
    """Return the table (256,) of `level * factor + offset` in single precision, clipped and truncated to integers."""
    return np.clip(_LEVELS * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def saturated(image: Image, factor: float) -> Image:
    """Multiply the saturation of an image by `factor`."""
    return from_hsv(look_up_channel(to_hsv(image), 1, linear(factor, 0.0)))


def hue_turned(image: Image, offset: int) -> Image:
    """Add `offset` to the hue of an image, modulo 180."""
    table = ((np.arange(256) + offset) % 180).astype(np.uint8)
    return from_hsv(look_up_channel(to_hsv(image), 0, table))
