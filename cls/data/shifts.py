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

# H x W size of the image; n its length along the axis that is shifted; m the part of it that is not outside

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
    work = _work(image.height, image.width, axis, threading.get_ident())
    return work.shifted(image, slope, offset, fill) or by_pillow(image, axis, slope, offset, fill)


def by_pillow(image: Any, axis: Axis, slope: float, offset: float, fill: Fill, resampling: Any = BICUBIC) -> Any:
    """Return `shifted` as Pillow computes it."""
    matrix = (1, slope, offset, 0, 1, 0) if axis == "x" else (1, 0, 0, slope, 1, offset)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=fill)


class _Work:
    """`shifted` for one size, with arrays that are used again: new memory costs as much as the arithmetic."""

    def __init__(self, height: int, width: int, axis: Axis) -> None:
        self.axis, self.height, self.width = axis, height, width
        self.n = width if axis == "x" else height
        self.along, self.across = np.arange(width), np.arange(height)[:, None]
        if axis == "y":
            self.along, self.across = self.across, self.along
        pixels, more = height * width, (self.n + 3) * (height * width // self.n)
        self.memory = {
            "at": np.empty(pixels), "low": np.empty(pixels), "outside": np.empty(pixels, bool),
            "beyond": np.empty(pixels, bool), "place": np.empty(more, np.intp), "taken": np.empty(more, np.uint32),
            "neighbours": np.empty(3 * more, np.int16), "steps": np.empty(3 * more, np.int16),
            "p2": np.empty(3 * pixels, np.int16), "p3": np.empty(3 * pixels, np.int16),
            "p4": np.empty(3 * pixels, np.int16), "value": np.empty(3 * pixels),
        }  # fmt: skip
        self.result = np.empty((height, width, 4), np.uint8)

    def shifted(self, image: Any, slope: float, offset: float, fill: Fill) -> Any:
        """Return the shifted image; None if a row (or column) is not shifted as a whole, which rounding may cause."""
        at, low, outside = self._coordinates(slope, offset)
        first = self._part(low, 0, 1)
        if np.not_equal(low, first, out=self._array("beyond", low.shape)).any():
            return None
        begin, end = self._seen(outside)
        self.result[:] = (*fill, OPAQUE)
        if begin < end:
            neighbours = self._neighbours(image, first, begin, end)
            values = self._interpolated(neighbours, self._part(at, begin, end), end - begin)
            window = self.result[:, begin:end] if self.axis == "x" else self.result[begin:end]
            for colour in range(3):
                window[..., colour] = values[colour]
            if slope:
                np.copyto(self.result, np.array([*fill, OPAQUE], np.uint8), where=outside[..., None])
        return Image.frombytes("RGB", (self.width, self.height), self.result, "raw", "RGBX")

    def _coordinates(self, slope: float, offset: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the distance to the pixel below, by how many pixels that is shifted, and whether it is outside.

        They have the image's size, or only its length along the axis if all rows (or columns) are equal.
        """
        rows = slope * (self.across + 0.5) if slope else np.zeros((1, 1))
        shape = np.broadcast_shapes(self.along.shape, rows.shape)
        at, low = self._array("at", shape), self._array("low", shape)
        outside, beyond = self._array("outside", shape), self._array("beyond", shape)
        np.add(self.along + 0.5, rows, out=at)
        at += offset
        np.less(at, 0, out=outside)
        np.greater_equal(at, self.n, out=beyond)
        outside |= beyond
        at -= 0.5
        np.floor(at, out=low)
        at -= low
        low -= self.along
        return at, low, outside

    def _seen(self, outside: NDArray[np.bool_]) -> tuple[int, int]:
        """Return the range along the axis that has pixels of the image."""
        seen = np.flatnonzero(~outside.all(axis=0 if self.axis == "x" else 1))
        return (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)

    def _neighbours(self, image: Any, first: NDArray[Any], begin: int, end: int) -> NDArray[np.int16]:
        """Return the pixels from one before the range to two behind it, those at the edge repeated: (3, ...)."""
        length = end - begin + 3
        size = (self.height, length) if self.axis == "x" else (length, self.width)
        line = np.arange(begin - 1, end + 2) if self.axis == "x" else np.arange(begin - 1, end + 2)[:, None]
        place, taken = self._array("place", size), self._array("taken", size)
        at = np.clip(first.astype(np.intp) + line, 0, self.n - 1)
        if self.axis == "x":
            np.add(at, self.across * self.width, out=place)
        else:
            np.add(at * self.width, self.across, out=place)
        np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).take(place, out=taken, mode="clip")
        colours, neighbours = taken.view(np.uint8).reshape(*size, 4), self._array("neighbours", (3, *size))
        for colour in range(3):
            neighbours[colour] = colours[..., colour]
        return neighbours

    def _interpolated(self, neighbours: NDArray[np.int16], distance: NDArray[Any], length: int) -> NDArray[np.int16]:
        """Return Pillow's cubic, v2 + d (p2 + d (p3 + d p4)) of four neighbours v1 to v4, within 0..255: (3, ...)."""
        axis, count = (2, neighbours.shape[2]) if self.axis == "x" else (1, neighbours.shape[1])
        shape = tuple(length if number == axis else side for number, side in enumerate(neighbours.shape))
        steps = self._array("steps", tuple(side - (number == axis) for number, side in enumerate(neighbours.shape)))
        np.subtract(self._part(neighbours, 1, count), self._part(neighbours, 0, count - 1), out=steps)
        before, between, behind = (self._part(steps, start, start + length) for start in range(3))
        p2, p3, p4, value = (self._array(name, shape) for name in ("p2", "p3", "p4", "value"))
        np.add(before, behind, out=p4)  # -v1 + v2 - v3 + v4
        np.add(before, p4, out=p3)  # -(2 (v1 - v2) + v3 - v4)
        np.add(before, between, out=p2)  # v3 - v1
        np.multiply(p4, distance, out=value)
        value -= p3
        value *= distance
        value += p2
        value *= distance
        value += self._part(neighbours, 1, 1 + length)
        np.copyto(p2, value, casting="unsafe")  # towards zero, as Pillow
        return np.clip(p2, 0, 255, out=p2)

    def _part(self, array: NDArray[Any], begin: int, end: int) -> NDArray[Any]:
        """Return a range of `array` along the axis."""
        return array[..., begin:end] if self.axis == "x" else array[..., begin:end, :]

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array `name` with the given shape, in memory that is used again."""
        return self.memory[name][: int(np.prod(shape))].reshape(shape)


@lru_cache(maxsize=4)
def _work(height: int, width: int, axis: Axis, thread: int) -> _Work:
    return _Work(height, width, axis)
