"""Shear and translation equal Pillow's to the byte, and timm's at every magnitude."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import AugmentOp

from mimbench.cls.data import shifts
from mimbench.cls.data.augment import Operation
from mimbench.cls.data.shifts import by_pillow, shifted
from tests.cls.golden import randaugment as golden

FILL = (124, 116, 104)


def _images() -> Iterator[Any]:
    """Waves and noise of odd sizes, and pictures of few colours, in which values lie exactly on whole numbers."""
    noise = np.random.default_rng(1).integers(0, 256, (97, 131, 3)).astype(np.uint8)
    steps = np.repeat(np.repeat(noise[:12, :10] // 128 * 255, 9, 0), 9, 1)
    ramp = np.broadcast_to(np.arange(90, dtype=np.uint8)[:, None, None] * 2, (90, 70, 3))
    for array in (noise, steps, ramp):
        yield Image.fromarray(np.ascontiguousarray(array))
    yield golden.pictures()[0].resize((224, 224), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_every_byte_is_pillows(axis: shifts.Axis) -> None:
    for image in _images():
        for slope, offset in (
            (0.0, 0.0), (0.3, 0.0), (-0.3, 0.0), (0.271, 0.0), (-0.013, 0.0), (0.25, 0.0), (-0.5, 3.0),
            (0.0, 1.0), (0.0, -7.5), (0.0, 31.37), (0.0, -0.45 * 224), (0.0, 1e-9), (0.0, -1e-9), (0.0, 500.0),
        ):  # fmt: skip
            wanted = by_pillow(image, axis, slope, offset, FILL)
            found = shifted(image, axis, slope, offset, FILL)
            assert (found.mode, found.size) == ("RGB", image.size)
            assert found.tobytes() == wanted.tobytes(), (image.size, slope, offset)


def test_a_small_image_is_pillows_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifts, "_work", None)
    small = Image.new("RGB", (40, 40), (1, 2, 3))
    assert shifted(small, "x", 0.2, 0.0, FILL).size == (40, 40)
    monkeypatch.setattr(shifts, "EQUAL", False)
    assert shifted(small.resize((80, 80)), "x", 0.2, 0.0, FILL).size == (80, 80)


SHIFTS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel")


@pytest.mark.parametrize("name", SHIFTS)
def test_operations_are_timms_at_every_magnitude(name: str) -> None:
    image = golden.pictures()[0].resize((96, 80), Image.Resampling.BICUBIC)
    for hparams in (golden.HPARAMS, golden.HPARAMS | {"interpolation": Image.Resampling.BILINEAR}, {}):
        for magnitude in golden.MAGNITUDES:
            timms = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=dict(hparams) or None)
            for sign in (0, 1):
                golden.seed(sign)
                wanted = timms(image)
                golden.seed(sign)
                assert Operation(timms)(image).tobytes() == wanted.tobytes(), (magnitude, sign)
