"""The training transform against detectron2's: geometry exactly, pixels within rounding.

Golden values: detectron2 02b5c4e2 on the images, shapes and draws below (HFlipTransform, ResizeScale, FixedSizeCrop
with pad=False, ResizeShortestEdge, transform_instance_annotations).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from mimbench.det.config import Augment
from mimbench.det.data.augment import (
    Jitter,
    boxes_around,
    draw_jitter,
    fitted,
    jittered,
    place_bitmap,
    place_polygons,
    render,
)

# source, flip, scale, fraction, side; resized, offset, kept; means of the kept pixels in a 3 x 3 grid of rectangles
PLACED: list[Any] = [
    ((480, 640), (False, 0.37, 0.5), 1024, (284, 379), (0, 0), (284, 379),
     [[126.428, 127.408, 126.823], [126.961, 126.718, 127.478], [127.492, 126.506, 127.379]]),
    ((480, 640), (True, 1.73, 0.25), 1024, (1329, 1772), (76, 187), (1024, 1024),
     [[128.756, 125.472, 128.104], [126.154, 127.333, 127.25], [126.459, 128.045, 125.534]]),
    ((427, 640), (True, 1.2, 0.9), 1024, (820, 1229), (0, 184), (820, 1024),
     [[127.773, 126.081, 127.015], [126.641, 127.984, 126.483], [126.836, 126.212, 127.843]]),
    ((640, 333), (False, 2.0, 0.61), 1024, (2048, 1066), (625, 26), (1024, 1024),
     [[126.176, 126.414, 127.498], [126.337, 127.387, 127.888], [127.319, 127.89, 127.171]]),
    ((128, 128), (False, 1.37, 0.44), 96, (132, 132), (16, 16), (96, 96),
     [[145.554, 101.971, 139.878], [130.681, 144.16, 101.807], [104.281, 132.629, 142.697]]),
    ((97, 61), (True, 0.1, 0.0), 64, (6, 4), (0, 0), (6, 4),
     [[151.0, 153.833, 106.417], [85.667, 133.167, 127.417], [155.667, 92.0, 147.167]]),
    ((50, 75), (True, 1.9, 1.0), 64, (81, 122), (17, 58), (64, 64),
     [[131.813, 67.683, 137.146], [176.528, 89.263, 87.756], [182.628, 140.936, 68.758]]),
]  # fmt: skip

SHAPES = [
    [[10, 10, 40, 12, 44, 50, 25, 30, 8, 48]],
    [[30, 5, 60, 45, 60, 5, 30, 45]],  # crosses itself
    [[50, 20, 74, 20, 74, 48, 62, 48, 62, 26, 56, 26, 56, 48, 50, 48]],
    [[2, 2, 9, 2, 9, 9], [66, 40, 73, 41, 70, 49, 60, 47]],
]
POLYGONS: list[Any] = [
    ((False, 1.6, 0.5), [
        [[15.0, 38.8, 38.94, 64.0, 40.629474, 64.0, 35.4, 14.32, 0.0, 11.96, 0.0, 54.682353]],
        [[62.6, 59.2, 62.6, 4.8, 42.2, 32.0]],
        [[49.0, 63.28, 57.16, 63.28, 57.16, 33.36, 64.0, 33.36, 64.0, 25.2, 49.0, 25.2]],
        [[62.6, 61.92, 64.0, 62.2, 64.0, 60.286667]],
    ]),
    ((True, 1.9, 1.0), [
        [[0.0, 2.36918, 0.0, 56.060742, 23.333333, 31.6, 50.986667, 60.76, 47.775612, 0.0, 35.683951, 0.0]],
        [[15.2, 55.9, 15.2, 0.0, 8.497531, 0.0, 0.0, 11.283607, 0.0, 35.716393]],
        [],
        [],
    ]),
    ((True, 0.6, 0.3), [
        [[17.733333, 6.24, 15.706667, 26.0, 25.333333, 15.6, 33.946667, 24.96, 32.933333, 5.2]],
        [[22.8, 23.4, 22.8, 2.6, 15.2, 13.0]],
        [[0.506667, 10.4, 0.506667, 24.96, 6.586667, 24.96, 6.586667, 13.52, 9.626667, 13.52, 9.626667, 24.96,
          12.666667, 24.96, 12.666667, 10.4]],
        [[33.44, 1.04, 33.44, 4.68, 36.986667, 1.04], [1.013333, 21.32, 2.533333, 25.48, 7.6, 24.44, 4.56, 20.8]],
    ]),
]  # fmt: skip
BOXES = {
    0: [[0, 11.96, 40.62947, 64], [42.2, 4.8, 62.6, 59.2], [49, 25.2, 64, 63.28], [62.6, 60.28667, 64, 62.2]],
    1: [[0, 0, 50.98667, 60.76], [0, 0, 15.2, 55.9], [0, 0, 0, 0], [0, 0, 0, 0]],
}
BITMAPS = [  # a ring, resized by nearest neighbour: its encoding
    ((False, 1.6, 0.5), "eh0:f10L8I5L5M0N4M2N2O0N4N000O2OVOD0:1HO71IO7OL04OOO0120L040L040L040L040L040L040L040L040L040"
     "M01O12L040L042IO90E0<j0001N102L201N2N3L202K6K204H_7"),
    ((True, 1.9, 1.0), "04h0=KC5=KC5=KC5=KE2:0GM;3EM;3GI;7EI;7GF8<f0000O10000N200N2O100N202K7I305F50eY2"),
    ((True, 0.6, 0.3), "a77a04M2N2O1NFL04ON020O00000000000O021L05:0O2N2N3Lc9"),
]  # fmt: skip
FITTED = [
    ((480, 640), 1024, (768, 1024)), ((427, 640), 96, (64, 96)), ((640, 480), 96, (96, 72)),
    ((333, 500), 1024, (682, 1024)), ((51, 640), 1024, (82, 1024)), ((1200, 1023), 1024, (1024, 873)),
]  # fmt: skip


def _waves(height: int, width: int) -> Tensor:
    y, x = np.mgrid[:height, :width]
    waves = np.stack([127 + 100 * np.sin(0.13 * x + 0.07 * y + c) for c in range(3)])
    return torch.from_numpy(waves.round().astype(np.uint8))


@pytest.mark.parametrize("case", PLACED, ids=lambda case: f"{case[0]}x{case[1][1]}")
def test_geometry_and_pixels(case) -> None:
    source, jitter, side, resized, offset, size, means = case
    placement = jittered(source, Jitter(*jitter), side)
    assert (placement.resized, placement.offset, placement.size) == (resized, offset, size)
    pixels = render(_waves(*source), placement).float()
    assert pixels.shape == (3, *size)
    rows, columns = ([length * i // 3 for i in range(4)] for length in size)
    for i in range(3):
        for j in range(3):
            mean = pixels[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]].mean().item()
            assert mean == pytest.approx(means[i][j], abs=0.25)


def test_only_the_part_that_is_kept_is_resized_yet_the_pixels_are_those_of_the_whole() -> None:
    image = torch.randint(0, 256, (3, 120, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = F.gaussian_blur(image, [5, 5])
    differences = []
    for scale in (0.4, 0.9, 1.003, 1.37, 1.9):
        for fraction in (0.0, 0.3, 1.0):
            for flip in (False, True):
                placement = jittered((120, 160), Jitter(flip, scale, fraction), 128)
                whole = F.resize(image.flip(-1) if flip else image, list(placement.resized), antialias=True)
                (top, left), (height, width) = placement.offset, placement.size
                plain = whole[:, top : top + height, left : left + width]
                differences.append((render(image, placement).float() - plain.float()).abs().mean().item())
    assert max(differences) < 0.5
    assert sum(differences) / len(differences) < 0.15


@pytest.mark.parametrize("number", range(3))
def test_polygons(number: int) -> None:
    jitter, golden = POLYGONS[number]
    instances = [[np.array(polygon, dtype=np.float64) for polygon in shape] for shape in SHAPES]
    placed = place_polygons(instances, jittered((50, 75), Jitter(*jitter), 64))
    assert [len(shape) for shape in placed] == [len(shape) for shape in golden]
    for shape, expected in zip(placed, golden, strict=True):
        for polygon, corners in zip(shape, expected, strict=True):
            assert polygon.tolist() == pytest.approx(corners, abs=1e-6)
    if number in BOXES:
        assert boxes_around(placed).tolist() == [pytest.approx(box, abs=1e-5) for box in BOXES[number]]
    left_alone = [polygon.tolist() for shape in instances for polygon in shape]
    assert left_alone == [polygon for shape in SHAPES for polygon in shape]


@pytest.mark.parametrize("number", range(3))
def test_bitmaps(number: int) -> None:
    y, x = np.mgrid[:50, :75]
    squared = (x - 40) ** 2 + (y - 20) ** 2
    ring = ((squared < 300) & (squared > 60)).astype(np.uint8)
    jitter, golden = BITMAPS[number]
    placed = place_bitmap(ring, jittered((50, 75), Jitter(*jitter), 64))
    assert coco_masks.encode(np.asfortranarray(placed))["counts"].decode() == golden


def test_boxes_of_bitmaps_hold_whole_pixels() -> None:
    bitmap = np.zeros((6, 8), dtype=np.uint8)
    bitmap[2:4, 3:7] = 1
    assert boxes_around([bitmap, np.zeros_like(bitmap)]).tolist() == [[3, 2, 7, 4], [0, 0, 0, 0]]


@pytest.mark.parametrize(("source", "side", "size"), FITTED)
def test_validation_images_are_fitted(source, side, size) -> None:
    assert fitted(source, side).size == size
    assert render(_waves(*source), fitted(source, side)).shape == (3, *size)


def test_of_a_strip_something_is_left() -> None:
    for size, fits in (((3, 2000), (1, 64)), ((3000, 2), (64, 1)), ((1, 1), (64, 64))):
        placement = fitted(size, 64)
        assert placement.resized == fits
        kept = render(torch.full((3, *size), 9, dtype=torch.uint8), placement)
        assert kept.shape == (3, *fits)
        assert (kept == 9).all()


def test_draws_cover_their_ranges() -> None:
    draws = [draw_jitter(Augment(flip=0.25, smallest=0.5, largest=1.5)) for _ in range(2000)]
    assert 0.2 < sum(draw.flip for draw in draws) / len(draws) < 0.3
    for values, low, high in (([d.scale for d in draws], 0.5, 1.5), ([d.fraction for d in draws], 0.0, 1.0)):
        assert low <= min(values) < low + 0.02
        assert high - 0.02 < max(values) <= high
