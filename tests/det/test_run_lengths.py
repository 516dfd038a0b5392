"""Masks of run lengths are checked together as they are one by one, by a slow form of the same rule."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pycocotools.mask as coco_masks
import pytest

from mimbench.det.data import columns, run_lengths
from mimbench.det.data.run_lengths import blocks, fill


def _slow(text: bytes, area: int) -> bool:
    """Whether a text fills an image of `area` pixels, as pycocotools' rleFrString reads it, character by character."""
    numbers: list[int] = []
    number = digits = 0
    for code in (character - 48 for character in text):
        if not 0 <= code <= 63 or digits > 6:
            return False
        number |= (code & 31) << (5 * digits)
        digits += 1
        if not code & 32:
            number -= (code & 16) << (5 * digits - 4) if code & 16 else 0
            numbers.append(number + (numbers[-2] if len(numbers) > 2 else 0))
            number = digits = 0
    return bool(text) and digits == 0 and min(numbers) >= 0 and sum(numbers) == area


def _masks(draw: random.Random, number: int) -> tuple[list[bytes], list[int]]:
    texts, areas = [], []
    for _ in range(number):
        height, width = draw.randrange(1, 40), draw.randrange(1, 40)
        mask = np.random.default_rng(draw.randrange(10**9)).random((height, width)) < draw.random() ** 2
        texts.append(coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])
        areas.append(height * width)
    return texts, areas


@pytest.mark.parametrize("together", [1, 50, run_lengths.TOGETHER])
def test_masks_of_pycocotools_fill_their_images(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lengths, "TOGETHER", together)
    texts, areas = _masks(random.Random(0), 60)
    assert all(map(_slow, texts, areas))
    assert fill(texts, areas)
    for place in (0, 31, 59):
        assert not fill(texts, [area + (at == place) for at, area in enumerate(areas)])
        assert not fill([b"" if at == place else text for at, text in enumerate(texts)], areas)
    assert fill([], [])


def test_a_damaged_text_is_found_among_others() -> None:
    draw = random.Random(1)
    texts, areas = _masks(draw, 8)
    outcomes = []
    for _ in range(400):
        place = draw.randrange(len(texts))
        damaged = bytearray(texts[place])
        damaged[draw.randrange(len(damaged))] = draw.choice(
            [47, 48, 49, 63, 64, 79, 80, 111, 112, 200, draw.randrange(256)]
        )
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        changed = [*texts[:place], bytes(damaged), *texts[place + 1 :]]
        outcomes.append(fill(changed, areas))
        assert outcomes[-1] == _slow(bytes(damaged), areas[place]), damaged
    assert 0 < sum(outcomes) < 100, "some damage changes nothing"


def test_blocks_are_limited_by_pieces_and_by_their_length() -> None:
    lengths = np.array([3, 3, 3, 3, 100, 0, 0, 0, 1])
    assert list(blocks(lengths, 3, 9)) == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 8), slice(8, 9)]
    assert list(blocks(lengths[:0], 3, 9)) == []


def test_large_masks_are_rearranged_in_little_memory() -> None:
    """24 bytes for each byte of 4,096 masks are gigabytes if each mask is as large as an image."""
    lengths = np.full(48, 2**17)
    values = np.arange(lengths.sum()).astype(np.uint8)
    order = np.arange(48)[::-1].copy()
    tracemalloc.start()
    found = columns._pieces(values, columns.ends(lengths), order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tobytes() == values.reshape(48, -1)[::-1].tobytes()
    assert peak < 3 * len(values)
