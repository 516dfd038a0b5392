"""Shear and translation of images, byte for byte as Pillow's bicubic `Image.transform`, in under half its time.

Pillow interpolates five times for each colour of each pixel: along four rows, then between them. If one coordinate does
not change, four of the five return their input. This file computes the fifth, for all pixels at once, in double
precision and in Pillow's order of operations (Geometry.c: affine_transform, BICUBIC), so that every byte is equal
(tests/cls/test_shifts.py, on noise, waves and flat images).

Equality needs a processor on which Pillow is compiled without fused multiply-adds (x86-64). Elsewhere, for images of
fewer than `SMALLEST` pixels and for other filters, Pillow does the work.
"""

from __future__ import annotations

import platform
import threading
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# H, W size of the image; n its length along the axis that is shifted

Axis = Literal["x", "y"]
Fill = tuple[int, int, int]
BICUBIC = Image.Resampling.BICUBIC
EQUAL = platform.machine().lower() in ("x86_64", "amd64")
SMALLEST = 64 * 64  # pixels from which this is faster than Pillow
OPAQUE = 255  # Pillow's fourth byte of a pixel in RGB


def shifted(image: Any, axis: Axis, slope: float, offset: float, fill: Fill, resampling: Any = BICUBIC) -> Any:
    """Return a PIL image in RGB whose pixel (x, y) comes from x + slope * y + offset, or y + slope * x + offset.

    Coordinates are those of the pixels' centres, from .5; pixels from outside of the image get the colour `fill`.
    """
    if not EQUAL or resampling != BICUBIC or image.width * image.height < SMALLEST:
        return by_pillow(image, axis, slope, offset, fill, resampling)
    buffers = _buffers(image.height, image.width, axis, threading.get_ident())
    return buffers.shifted(image, slope, offset, fill) or by_pillow(image, axis, slope, offset, fill)


def by_pillow(image: Any, axis: Axis, slope: float, offset: float, fill: Fill, resampling: Any = BICUBIC) -> Any:
    """Return `shifted` as Pillow computes it."""
    matrix = (1, slope, offset, 0, 1, 0) if axis == "x" else (1, 0, 0, slope, 1, offset)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=fill)


class _Buffers:
    """The arrays of `shifted` for one size, which are used again: new memory costs as much as the arithmetic."""

    def __init__(self, height: int, width: int, axis: Axis) -> None:
        self.axis, self.height, self.width = axis, height, width
        size, self.n = (height, width), width if axis == "x" else height
        wider = (height, width + 3) if axis == "x" else (height + 3, width)
        less = (3, height, width + 2) if axis == "x" else (3, height + 2, width)
        self.at, self.low = np.empty(size), np.empty(size)  # where a pixel comes from: as a number, and its floor
        self.outside, self.beyond = np.empty(size, bool), np.empty(size, bool)
        self.place, self.taken = np.empty(wider, np.intp), np.empty(wider, np.uint32)
        self.pixels, self.steps = np.empty((3, *wider), np.int16), np.empty(less, np.int16)
        self.p2, self.p3, self.p4 = (np.empty((3, *size), np.int16) for _ in range(3))
        self.value, self.result = np.empty((3, *size)), np.empty((*size, 4), np.uint8)

    def shifted(self, image: Any, slope: float, offset: float, fill: Fill) -> Any:
        """Return the shifted image; None if a row (or column) is not shifted as a whole, which rounding may cause."""
        self._coordinates(slope, offset)
        first = self.low[:, :1] if self.axis == "x" else self.low[:1]
        if (self.low != first).any():
            return None
        self._take(image, first)
        self._interpolate()
        for colour in range(3):
            np.copyto(self.result[..., colour], self.value[colour], casting="unsafe")
        self.result[..., 3] = OPAQUE
        np.copyto(self.result, np.array([*fill, OPAQUE], np.uint8), where=self.outside[..., None])
        return Image.frombytes("RGB", (self.width, self.height), self.result, "raw", "RGBX")

    def _coordinates(self, slope: float, offset: float) -> None:
        """Compute the distance to the pixel below (`at`), the number of pixels shifted (`low`), and `outside`."""
        x, y = np.arange(self.width), np.arange(self.height)[:, None]
        if self.axis == "x":
            np.add(x + 0.5, slope * (y + 0.5), out=self.at)
        else:
            np.add(slope * (x + 0.5), y + 0.5, out=self.at)
        self.at += offset
        np.less(self.at, 0, out=self.outside)
        np.greater_equal(self.at, self.n, out=self.beyond)
        self.outside |= self.beyond
        self.at -= 0.5
        np.floor(self.at, out=self.low)
        self.at -= self.low
        self.low -= x if self.axis == "x" else y

    def _take(self, image: Any, first: NDArray[np.float64]) -> None:
        """Fetch the pixels from one before the shifted image to two behind it, those at the edge repeated."""
        x, y = np.arange(self.width), np.arange(self.height)[:, None]
        begin, more = first.astype(np.intp) - 1, np.arange(self.n + 3)
        np.add(begin, more if self.axis == "x" else more[:, None], out=self.place)
        np.clip(self.place, 0, self.n - 1, out=self.place)
        if self.axis == "y":
            self.place *= self.width
        self.place += y * self.width if self.axis == "x" else x
        np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).take(self.place, out=self.taken, mode="clip")
        colours = self.taken.view(np.uint8).reshape(*self.taken.shape, 4)
        for colour in range(3):
            self.pixels[colour] = colours[..., colour]

    def _interpolate(self) -> None:
        """Compute Pillow's cubic, v2 + d (p2 + d (p3 + d p4)), limited to 0..255, from four neighbours v1 to v4."""
        if self.axis == "x":
            np.subtract(self.pixels[..., 1:], self.pixels[..., :-1], out=self.steps)
        else:
            np.subtract(self.pixels[:, 1:], self.pixels[:, :-1], out=self.steps)
        before, between, behind = (self._from(self.steps, start) for start in range(3))
        np.add(before, behind, out=self.p4)  # -v1 + v2 - v3 + v4
        np.add(before, self.p4, out=self.p3)  # -(2 (v1 - v2) + v3 - v4)
        np.add(before, between, out=self.p2)  # v3 - v1
        value, distance = self.value, self.at
        np.multiply(self.p4, distance, out=value)
        value -= self.p3
        value *= distance
        value += self.p2
        value *= distance
        value += self._from(self.pixels, 1)
        np.maximum(value, 0, out=value)
        np.minimum(value, 255, out=value)

    def _from(self, array: NDArray[np.int16], start: int) -> NDArray[np.int16]:
        """Return the part of `array` of the image's size from `start` on."""
        if self.axis == "x":
            return array[..., start : start + self.n]
        return array[:, start : start + self.n]


@lru_cache(maxsize=4)
def _buffers(height: int, width: int, axis: Axis, thread: int) -> _Buffers:
    return _Buffers(height, width, axis)
