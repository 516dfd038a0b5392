"""The detector's parts: masks, boxes, anchors, matching, sampling, pooling. Golden numbers: detectron2 (02b5c4e2)."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_masks
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from mimbench.det.model.anchors import Anchors
from mimbench.det.model.boxes import decode, encode, image_corners, nonempty
from mimbench.det.model.masks import InstanceMasks, paste
from mimbench.det.model.matching import match, occurrences, sample
from mimbench.det.model.pooling import RegionPooler, align, align_by_products, with_image
from mimbench.det.model.roi_heads import Detections


def star(x: float, y: float, width: float, height: float) -> np.ndarray:
    """A ten-pointed polygon around (x, y), flat."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    reach = np.where(np.arange(20) % 2, 0.25, 0.5)
    return np.stack([x + width * reach * np.cos(angle), y + height * reach * np.sin(angle)], 1).ravel()


POLYGONS = [
    [star(30, 40, 40, 60)],
    [star(90.5, 30.2, 50, 31.3)],
    [star(82, 90, 20, 22), star(112, 92, 18, 30)],
    [star(33, 44, 30, 30)],
]


def bitmaps() -> np.ndarray:
    """A disc and a cut rectangle: (2, 100, 120)."""
    y, x = np.mgrid[:100, :120]
    return np.stack([(x - 40) ** 2 + (y - 50) ** 2 < 30**2, (abs(x - 90) < 20) & (abs(y - 30) < 12) & (x + y > 110)])


def regions(boxes_T4: Tensor) -> Tensor:
    """Each box, one that cuts it, and one around it."""
    middle, side = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2, boxes_T4[:, 2:] - boxes_T4[:, :2]
    cut = torch.cat([middle - 0.4 * side + 3.3, middle + 0.55 * side + 1.7], 1)
    return torch.cat([boxes_T4, cut, torch.cat([middle - 0.9 * side, middle + 0.8 * side], 1)])


def around(polygons: list[list[np.ndarray]]) -> Tensor:
    """The box of each instance."""
    points = [np.concatenate(pieces).reshape(-1, 2) for pieces in polygons]
    return torch.tensor([[*of.min(0), *of.max(0)] for of in points]).float()


def test_polygon_targets_are_those_of_detectron2() -> None:
    masks, boxes, instance = InstanceMasks(POLYGONS), regions(around(POLYGONS)), torch.arange(4).repeat(3)
    drawn = masks.rasterise(instance, boxes, 28)
    weight = (torch.arange(28 * 28) % 97).view(28, 28)
    assert drawn.dtype == torch.bool
    assert drawn.sum((1, 2)).tolist() == [312, 312, 210, 312, 347, 347, 202, 347, 110, 110, 76, 110]
    assert (drawn * weight).sum((1, 2)).tolist() == [
        14731, 14731, 10081, 14731, 16324, 16262, 9588, 16251, 4645, 4645, 3897, 4645
    ]  # fmt: skip
    small = masks.rasterise(instance, boxes, 7).sum((1, 2)).tolist()
    assert small == [25, 25, 17, 25, 26, 23, 13, 20, 7, 7, 8, 7]


def test_bitmap_targets_are_those_of_detectron2() -> None:
    boxes, instance = regions(torch.tensor([[11.0, 21, 70, 80], [71, 19, 110, 42]])), torch.arange(2).repeat(3)
    drawn = InstanceMasks(list(bitmaps())).rasterise(instance, boxes, 28)
    weight = (torch.arange(28 * 28) % 97).view(28, 28)
    assert drawn.sum((1, 2)).tolist() == [632, 583, 595, 559, 216, 196]
    assert (drawn * weight).sum((1, 2)).tolist() == [30439, 27972, 27933, 27015, 10233, 9119]


def plain_rasterise(polygons: list[np.ndarray], box: np.ndarray, side: int) -> Tensor:
    """The slow, obvious form: one region at a time, its polygons united by COCO's own functions."""
    origin, scale = box[:2], np.float32(side) / (box[2:] - box[:2])
    placed = [((polygon.reshape(-1, 2) - origin) * scale).ravel() for polygon in polygons]
    merged = coco_masks.merge(coco_masks.frPyObjects(placed, side, side))
    return torch.from_numpy(coco_masks.decode(merged)).bool()


def test_mixed_targets_one_at_a_time() -> None:
    bitmap = bitmaps()[0]
    masks = InstanceMasks([POLYGONS[0], bitmap, POLYGONS[2], []])
    instance = torch.tensor([2, 1, 0, 3, 2, 1])
    boxes = torch.tensor(
        [[70.0, 75, 125, 108], [20, 20, 60, 70], [12, 11, 40, 60], [0, 0, 9, 9], [80, 80, 99, 100], [40, 40, 90, 90]]
    )
    drawn = masks.rasterise(instance, boxes, 14)
    for target, index, box in zip(drawn, instance.tolist(), boxes, strict=True):
        shape = masks.instances[index]
        if isinstance(shape, list) and shape:
            assert torch.equal(target, plain_rasterise(shape, box.numpy(), 14))
        elif isinstance(shape, np.ndarray):
            region = torch.cat([torch.zeros(1), box])[None]
            whole = torch.from_numpy(shape).float()[None, None]
            assert torch.equal(target, roi_align(whole, region, 14, 1.0, 0, True)[0, 0] >= 0.5)
        else:
            assert not target.any()
    assert masks.rasterise(instance[:0], boxes[:0], 14).shape == (0, 14, 14)


def test_pasted_masks_are_those_of_detectron2() -> None:
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    disc = torch.sigmoid((100 - (x - 14) ** 2 - (y - 13) ** 2) / 20)
    masks = torch.stack([disc, torch.sigmoid((x - y) / 3), x * y / 729, torch.ones(28, 28)])
    boxes = torch.tensor(
        [[10.3, 5.2, 50.7, 44.9], [-3, 20.5, 30, 61.2], [55.1, 2.7, 79.9, 10.1], [70.2, 50.0, 71.1, 58.4]]
    )
    drawn = paste(masks, boxes, (60, 80))
    assert drawn.shape == (4, 60, 80)
    assert drawn.sum((1, 2)).tolist() == [641, 650, 27, 8]
    assert (drawn * (torch.arange(4800) % 89).view(60, 80)).sum((1, 2)).tolist() == [28475, 29695, 1175, 268]
    outside = torch.tensor([[100.0, 70, 120, 90]]).expand(4, -1)
    assert not paste(masks, outside, (60, 80)).any()


def test_box_codes_are_those_of_detectron2() -> None:
    weights = (10.0, 10.0, 5.0, 5.0)
    source = torch.tensor([[10.0, 20, 50, 40], [0, 0, 7, 90]])
    target = torch.tensor([[12.0, 18, 60, 44], [3, 5, 9, 33]])
    codes = [[1.5, 0.5, 0.9116079807281494, 1.3118212223052979], [3.5714285373687744, -2.8888888359069824,
             -0.7707533240318298, -5.83802604675293]]  # fmt: skip
    assert torch.allclose(encode(source, target, weights), torch.tensor(codes))
    assert torch.allclose(decode(encode(source, target, weights), source, weights), target, atol=1e-4)
    wild = torch.tensor([[1.0, -2, 3, 0.5], [0, 4, 40, -3.0]])  # 40: cut at a growth of 62.5
    boxes = [[-2.4423789978027344, 14.94828987121582, 70.4423828125, 37.05171203613281],
             [-215.25001525878906, 56.3034782409668, 222.25001525878906, 105.69651794433594]]  # fmt: skip
    assert torch.allclose(decode(wild, source, weights), torch.tensor(boxes), atol=1e-4)
    assert decode(wild.double(), source.double(), weights).dtype == torch.float32


def test_clipping_and_emptiness() -> None:
    boxes = torch.tensor([[[-5.0, 2, 30, 50], [40, 1, 60, 9]]])
    clipped = boxes.clamp(min=0).minimum(image_corners([(20, 40)], boxes))
    assert clipped.tolist() == [[[0, 2, 30, 20], [40, 1, 40, 9]]]
    assert nonempty(clipped).tolist() == [[True, False]]


def test_anchors_are_those_of_detectron2() -> None:
    anchors = Anchors([32, 64], [0.5, 1.0, 2.0], [4, 8])
    maps = [torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 2, 2)]
    fine, coarse = anchors(maps)
    a, b = 22.627416610717773, 11.313708305358887
    assert (len(fine), len(coarse)) == (18, 12)
    assert fine[:3].tolist() == [[-a, -b, a, b], [-16, -16, 16, 16], [-b, -a, b, a]]
    assert fine[3].tolist() == [-18.627416610717773, -b, 26.627416610717773, b]
    assert fine[-1].tolist() == [-7.313708305358887, -14.627416610717773, 15.313708305358887, 30.627416610717773]
    assert coarse[-1].tolist() == [-14.627416610717773, -37.25483322143555, 30.627416610717773, 53.25483322143555]
    assert anchors(maps)[0] is fine
    assert len(anchors([maps[1], maps[0]])[0]) == 12


def test_matching_is_that_of_detectron2() -> None:
    overlap = torch.tensor(
        [[0.1, 0.6, 0.3, 0.0, 0.72, 0.29], [0.25, 0.2, 0.4, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.05, 0.0, 0.0]]
    )
    objects, labels = match(overlap, 0.3, 0.7, keep_best=True)
    assert objects.tolist() == [1, 0, 1, 2, 0, 0]
    assert labels.tolist() == [0, -1, 1, 1, 1, 0]
    assert match(overlap, 0.5, 0.5, keep_best=False)[1].tolist() == [0, 1, 0, 0, 1, 0]
    assert [part.tolist() for part in match(overlap[:0], 0.3, 0.7, keep_best=True)] == [[0] * 6, [0] * 6]


def test_samples_are_drawn_in_detectron2s_order() -> None:
    labels = torch.tensor([1, 0, 0, 1, -1, 0, 1, 0, 1, 0, 0, 1])
    torch.manual_seed(5)
    foreground, background = sample(labels, 6, 0.5, occurrences(labels).tolist())
    torch.manual_seed(5)
    assert foreground.tolist() == torch.tensor([0, 3, 6, 8, 11])[torch.randperm(5)[:3]].tolist()
    assert background.tolist() == torch.tensor([1, 2, 5, 7, 9, 10])[torch.randperm(6)[:3]].tolist()
    few, many = sample(torch.tensor([1, 0, 0, 0, 0]), 4, 0.5, (1, 4))
    assert (len(few), len(many)) == (1, 3)
    assert [len(part) for part in sample(torch.tensor([1, 1, 1, 1]), 4, 0.5, (4, 0))] == [2, 0]


def test_levels_are_those_of_detectron2() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 111.9, 112], [0, 0, 112.1, 112], [5, 5, 200, 300], [0, 0, 448, 448],
                          [0, 0, 2000, 2000], [0, 0, 56, 56]])  # fmt: skip
    assert RegionPooler(7, (4, 8, 16, 32)).levels(boxes).tolist() == [0, 0, 1, 2, 3, 3, 0]
    assert RegionPooler(7, (2, 4), canonical_size=56).levels(boxes).tolist() == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("side", [7, 14])
def test_pooling_by_products_is_roi_align(side: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 5, 20, 13, dtype=torch.float64, requires_grad=True)
    corners = torch.rand(40, 2, 2, dtype=torch.float64) * 200 - 20  # some inside, some across the border, some beyond
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[0] = 30.0  # of no size
    table = torch.cat([torch.arange(40)[:, None] // 15, boxes], 1)
    ours, theirs = align_by_products(features, table, side, 8), roi_align(features, table, side, 1 / 8, 0, True)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((pooled * weight).sum(), features)[0] for pooled in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-11)
    assert align(features, table[:0], side, 8).shape == (0, 5, side, side)


def test_pooling_puts_regions_back_in_order() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 4, 64 // scale, 64 // scale) for scale in (1, 2, 4)]
    per_image = [torch.tensor([[0, 0, 250.0, 250], [8, 8, 40, 40], [3, 9, 130, 140]]), torch.tensor([[5.0, 5, 90, 80]])]
    table = with_image(per_image)
    pooler = RegionPooler(7, (4, 8), canonical_size=112)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            pooled = pooler(maps, table)  # the third map has no stride: it is for proposals alone
        for row, level, features in zip(table, pooler.levels(table[:, 1:]).tolist(), pooled, strict=True):
            alone = roi_align(maps[level], row[None], 7, 1 / (4, 8)[level], 0, True)[0]
            assert torch.allclose(features, alone, atol=1e-5)


def test_detections_are_rescaled_clipped_and_emptied() -> None:
    boxes = torch.tensor([[2.0, 4, 20, 30], [38, 2, 40, 9]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), torch.zeros(2, 28, 28))
    larger = found.rescaled((50, 40), (100, 60))
    assert torch.allclose(larger.boxes, torch.tensor([[3.0, 8, 30, 60], [57, 4, 60, 18]]))
    inside = found._replace(boxes=torch.tensor([[2.0, 4, 50, 60], [41, 2, 44, 9]])).rescaled((50, 40), (50, 40))
    assert inside.boxes.tolist() == [[2, 4, 40, 50]]
    assert inside.labels.tolist() == [1]
    assert len(inside.masks) == 1
