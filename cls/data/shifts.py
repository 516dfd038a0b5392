"""Shear and translation of images, byte for byte as Pillow's bicubic `Image.transform`, in half of its time.

Pillow interpolates five times for each colour of each pixel: along four rows, then between them. If one coordinate does
not change, four of the five return their input. This file computes the fifth, for many rows at once, in double
precision and in Pillow's order of operations (Geometry.c: affine_transform, BICUBIC), so that every byte is equal
(tests/cls/test_shifts.py, on noise, waves and flat images). A vertical shift is a horizontal one of the image with its
axes exchanged.

Equality needs a processor on which Pillow is compiled without fused multiply-adds (x86-64). Elsewhere, for images of
fewer than `SMALLEST` pixels, for other filters and where rounding could move a pixel, Pillow does the work.
"""

from __future__ import annotations

import platform
import threading
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# H x W size of the image, R rows of one part of it, L columns of the result with pixels of the image

Axis = Literal["x", "y"]
Fill = tuple[int, int, int]
BICUBIC = Image.Resampling.BICUBIC
TRANSPOSE = Image.Transpose.TRANSPOSE
EQUAL = platform.machine().lower() in ("x86_64", "amd64")
SMALLEST = 64 * 64  # pixels from which this is faster than Pillow
OPAQUE = 255  # Pillow's fourth byte of a pixel in RGB
NEAR = 1e-9  # pixels: closer to a border of two pixels, rounding decides
PART = 224 * 224  # pixels computed at once: a usual crop in one part, because each part costs many calls of numpy


def shifted(image: Any, axis: Axis, slope: float, offset: float, fill: Fill, resampling: Any = BICUBIC) -> Any:
    """Return a PIL image in RGB whose pixel (x, y) comes from x + slope * y + offset, or y + slope * x + offset.

    Coordinates are those of the pixels' centres, from .5; pixels from outside of the image get the colour `fill`.
    """
    if not EQUAL or resampling != BICUBIC or (slope and offset) or image.width * image.height < SMALLEST:
        return by_pillow(image, axis, slope, offset, fill, resampling)
    along = image if axis == "x" else image.transpose(TRANSPOSE)
    result = _work(along.height, along.width, threading.get_ident()).shifted(along, slope, offset, fill)
    if result is None:
        return by_pillow(image, axis, slope, offset, fill)
    return result if axis == "x" else result.transpose(TRANSPOSE)


def by_pillow(image: Any, axis: Axis, slope: float, offset: float, fill: Fill, resampling: Any = BICUBIC) -> Any:
    """Return `shifted` as Pillow computes it."""
    matrix = (1, slope, offset, 0, 1, 0) if axis == "x" else (1, 0, 0, slope, 1, offset)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=fill)


class _Work:
    """Horizontal shifts for one size, with arrays that are used again: new memory costs as much as the arithmetic."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.rows = max(1, PART // width)
        self.across, self.along = np.arange(height)[:, None], np.arange(width)
        pixels = self.rows * width
        more = pixels + 3 * self.rows
        self.memory: dict[str, NDArray[Any]] = {
            "distance": np.empty(pixels), "place": np.empty(more, np.intp), "taken": np.empty(more, np.uint32),
            "neighbours": np.empty(3 * more, np.int16), "steps": np.empty(3 * more, np.int16),
            "p2": np.empty(3 * pixels, np.int16), "p3": np.empty(3 * pixels, np.int16),
            "p4": np.empty(3 * pixels, np.int16), "value": np.empty(3 * pixels),
        }  # fmt: skip
        self.result = np.full((height, width, 4), OPAQUE, np.uint8)

    def shifted(self, image: Any, slope: float, offset: float, fill: Fill) -> Any:
        """Return the shifted image; None if rounding decides where a pixel comes from. `slope` or `offset` is 0."""
        shift_H1 = slope * (self.across + 0.5) + offset
        first_H1 = np.floor(shift_H1)
        halves_H1 = 2 * (shift_H1 - first_H1)
        away_H1 = np.abs(halves_H1 - np.rint(halves_H1))
        if ((away_H1 < 2 * NEAR) & (away_H1 != 0)).any():
            return None
        begin_H1, end_H1 = self._seen(first_H1.astype(np.intp), halves_H1 >= 1)
        begin, end = int(begin_H1.min()), int(end_H1.max())
        if begin < end:
            pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32)
            for row in range(0, self.height, self.rows):
                self._part(pixels, slice(row, min(row + self.rows, self.height)), first_H1, (slope, offset), begin, end)
        outside = (self.along < begin_H1) | (self.along >= end_H1)
        colour = np.array([*fill, OPAQUE], np.uint8).view(np.uint32)
        np.copyto(self.result.view(np.uint32)[..., 0], colour, where=outside)
        return Image.frombytes("RGB", (self.width, self.height), self.result, "raw", "RGBX")

    def _seen(self, first_H1: NDArray[np.intp], half_H1: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the first column of each row that has a pixel of the image, and the first behind it.

        `first_H1`: by how many whole pixels a row is shifted; `half_H1`: whether by half a pixel or more beyond that.
        """
        begin_H1 = (-first_H1 - half_H1).clip(0, self.width)
        return begin_H1, (self.width - first_H1 - half_H1).clip(0, self.width)

    def _part(
        self,
        pixels: NDArray[np.uint32],
        rows: slice,
        first_H1: NDArray[Any],
        shift: tuple[float, float],
        begin: int,
        end: int,
    ) -> None:
        """Write the columns `begin` to `end` of some rows of the result."""
        slope, offset = shift
        columns = self.along[begin:end]
        first_R1 = first_H1[rows if slope else slice(1)]  # without slope all rows are equal
        distance_RL = self._array("distance", (len(first_R1), end - begin))
        np.add(columns + 0.5, slope * (self.across[rows][: len(first_R1)] + 0.5), out=distance_RL)  # in Pillow's order
        distance_RL += offset
        distance_RL -= 0.5
        distance_RL -= columns + first_R1
        neighbours_3RL = self._neighbours(pixels, rows, first_R1.astype(np.intp), begin, end)
        values_3RL = self._interpolated(neighbours_3RL, distance_RL)
        for colour, values_RL in enumerate(values_3RL):
            self.result[rows, begin:end, colour] = values_RL

    def _neighbours(
        self, pixels: NDArray[np.uint32], rows: slice, first_R1: NDArray[np.intp], begin: int, end: int
    ) -> NDArray[np.int16]:
        """Return the pixels from one before the columns to two behind them, edges repeated: (3, R, L + 3)."""
        size = (rows.stop - rows.start, end - begin + 3)
        place, taken = self._array("place", size), self._array("taken", size)
        columns_RL = (first_R1 + np.arange(begin - 1, end + 2)).clip(0, self.width - 1)
        np.add(columns_RL, self.across[rows] * self.width, out=place)
        pixels.take(place, out=taken, mode="clip")
        neighbours = self._array("neighbours", (3, *size))
        colours = taken.view(np.uint8).reshape(*size, 4)
        for colour in range(3):
            neighbours[colour] = colours[..., colour]
        return neighbours

    def _interpolated(self, neighbours: NDArray[np.int16], distance_RL: NDArray[Any]) -> NDArray[np.int16]:
        """Return Pillow's cubic, v2 + d (p2 + d (p3 + d p4)) of four neighbours v1 to v4, within 0..255: (3, R, L)."""
        _, rows, more = neighbours.shape
        columns = more - 3
        steps = self._array("steps", (3, rows, columns + 2))
        np.subtract(neighbours[..., 1:], neighbours[..., :-1], out=steps)
        before, between, behind = steps[..., :-2], steps[..., 1:-1], steps[..., 2:]
        p2, p3, p4, value = (self._array(name, (3, rows, columns)) for name in ("p2", "p3", "p4", "value"))
        np.add(before, behind, out=p4)  # -v1 + v2 - v3 + v4
        np.add(before, p4, out=p3)  # -(2 (v1 - v2) + v3 - v4)
        np.add(before, between, out=p2)  # v3 - v1
        np.multiply(p4, distance_RL, out=value)
        value -= p3
        value *= distance_RL
        value += p2
        value *= distance_RL
        value += neighbours[..., 1:-2]
        np.copyto(p2, value, casting="unsafe")  # towards zero, as Pillow
        return np.clip(p2, 0, 255, out=p2)

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array `name` with the given shape, in memory that is used again."""
        return self.memory[name][: int(np.prod(shape))].reshape(shape)


@lru_cache(maxsize=4)
def _work(height: int, width: int, thread: int) -> _Work:
    return _Work(height, width)
