"""Masks encoded from their small grids against masks pasted into the image and then encoded."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_masks
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.det.evaluation.rle import encode_masks
from mimbench.det.model.masks import paste

HEIGHT, WIDTH = 60, 90

# detectron2's paste_masks_in_image and pycocotools' encode, for the masks and boxes of `_golden`
GOLDEN = [
    "Xc0h0j0b0HN2N2O1N2N2N2N2N2N2N2N2N2O1N2N2N2N2N2N2NEMQO1o02;2N2N2N2N2N2O1N2N2N2N2N2N2N2N2N2O1]Z2",
    "Ta3>^1O1O1O1O1N2O1O1O1N2OlNO?0A1S12O1O1O1N2O1O1O1N2O1O1O1N2O1O000O1Y1",
    "1:a1:GO1N2O1O1O1O1O1O1N2O2N1ONL^N3b1N^N1a11_NNa1331O2N1O1O1N2O1O1O1O1O1N2O1O1O1O1O1O1N2O1O1O1O1O1N2O1O1O1O1O1O1N2O1O1O001O1N2O1O1O1O00O10O1001O1O1O1N2O1O001O1O1N2O1O1O1O1O1O2EQc0",
]


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    images = paste(masks, boxes, size).numpy()
    return [coco_masks.encode(np.asfortranarray(image.astype(np.uint8)))["counts"].decode() for image in images]


def _counts(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    return [region["counts"] for region in encode_masks(masks, boxes, size)]


def _golden() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    masks = torch.stack([0.5 + 0.45 * torch.sin(0.2 * x + 0.13 * y + i) for i in range(3)])
    return masks, torch.tensor([[10.3, 5.7, 50.2, 55.1], [60.0, 20.0, 89.5, 44.0], [0.0, 0.0, 80.0, 60.0]])


def test_golden() -> None:
    assert _counts(*_golden(), (HEIGHT, WIDTH)) == GOLDEN


@pytest.mark.parametrize("kind", ["smooth", "noise", "hard", "full", "tall", "ones", "zeros", "outside"])
def test_equal_to_pasting(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    number = 40
    low = torch.rand(number, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.8
    boxes = torch.cat([low, low + 0.3 + torch.rand(number, 2, generator=generator) * 40], dim=1)
    masks = torch.rand(number, 1, 7, 7, generator=generator)
    masks = F.interpolate(masks, (28, 28), mode="bicubic")[:, 0].clamp(0, 1)
    if kind == "noise":
        masks = torch.rand(number, 28, 28, generator=generator)
    if kind in ("hard", "full"):  # whole numbers everywhere: pixels on the threshold itself
        masks, boxes = (masks > 0.5).float(), boxes.round()
        boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
    if kind == "full":
        boxes[:] = torch.tensor([0.0, 0.0, WIDTH, HEIGHT])
    if kind == "tall":
        boxes[:, 1], boxes[:, 3] = 0, HEIGHT
    if kind in ("ones", "zeros"):
        masks = torch.full((number, 28, 28), float(kind == "ones"))
    if kind != "outside":
        boxes = boxes.minimum(torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))
    assert _counts(masks, boxes, (HEIGHT, WIDTH)) == _pasted(masks, boxes, (HEIGHT, WIDTH))


def test_no_masks() -> None:
    assert encode_masks(torch.rand(0, 28, 28), torch.rand(0, 4), (4, 4)) == []
