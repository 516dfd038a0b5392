"""Which patches are shown, predicted and dropped; and that a weighted draw has the distribution it should."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mimbench.backbones.config import SIZES, ViT
from mimbench.pretrain.config import GridMasking, KeepMasking, RandomMasking
from mimbench.pretrain.masking.strategies import Grid, Keep, Masked, Random, fixed_counts, weighted_order
from mimbench.pretrain.methods.table import build_masking
from tests.pretrain.originals import golden_noise


def random(mask: float, predict: float, noise_BN: Tensor) -> Masked:
    return Random(RandomMasking(mask_ratio=mask, predict=predict))(noise_BN, None, (1, noise_BN.shape[1]), 0.0)


@pytest.mark.parametrize(
    ("patches", "mask", "predict", "expected"),
    [
        (196, 0.75, 0.75, (49, 0, 147)),
        (196, 0.75, 0.25, (49, 98, 49)),
        (196, 0.75, 0.15, (49, 117, 30)),
        (196, 0.65, 0.65, (68, 0, 128)),
        (196, 0.85, 0.85, (29, 0, 167)),
        (256, 0.75, 0.25, (64, 128, 64)),
        (784, 0.75, 0.25, (196, 392, 196)),
    ],
)
def test_counts_are_those_of_the_original(
    patches: int, mask: float, predict: float, expected: tuple[int, int, int]
) -> None:
    assert fixed_counts(patches, mask, predict) == expected


@pytest.mark.parametrize(
    ("side", "unit", "mask", "expected"),
    [(7, 2, 0.6, 30), (6, 2, 0.6, 22), (6, 2, 0.5, 18), (5, 4, 0.28, 8), (5, 3, 0.8, 20), (10, 2, 0.9, 90)],
)
def test_units_are_counted_as_simmim_counts_them(side: int, unit: int, mask: float, expected: int) -> None:
    """Of `side` by `side` units so many are masked by the authors' `MaskGenerator`."""
    shape = ViT(width=16, depth=1, heads=2, patch=8, image=8 * side * unit)
    masking = build_masking(RandomMasking(mask_ratio=mask, predict=mask, unit=unit), shape, 10)
    assert masking.counts(shape.grid**2, 0.0) == (unit**2 * (side**2 - expected), 0, unit**2 * expected)


def test_maskalign_shows_58_of_196() -> None:
    assert Keep(KeepMasking(mask_ratio=0.7)).counts(196, 0.0) == (58, 138, 0)


def test_what_leaves_nothing_is_refused_before_training() -> None:
    tiny = ViT(width=48, depth=1, heads=4, patch=8, image=16)
    with pytest.raises(ValueError, match="leaves none of 4 patches"):
        build_masking(RandomMasking(mask_ratio=0.9, predict=0.9), tiny, 10)
    with pytest.raises(ValueError, match="leaves none of 4 units"):
        build_masking(RandomMasking(mask_ratio=0.8, predict=0.8, unit=2), ViT(width=48, heads=4, patch=8, image=32), 10)
    with pytest.raises(ValueError, match="196 patches cannot be divided into squares of cell=3 by 3"):
        build_masking(GridMasking(cell=3), SIZES["B"], 10)


def test_the_patches_the_original_predicts() -> None:
    """Positions of the first image, from the authors' code with the same noise."""
    noise = golden_noise(2, 16)
    assert random(0.75, 0.25, noise).predicted[0].tolist() == [2, 7, 10, 15]
    every = random(0.75, 0.75, noise)
    assert every.predicted[0].tolist() == [0, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 15]
    assert set(every.shown[0].tolist()) == {1, 4, 9, 12}
    assert every.dropped.shape == (2, 0)


@pytest.mark.parametrize(
    "masking",
    [
        Random(RandomMasking()),
        Grid(GridMasking(predict=0.25)),
        Grid(GridMasking(cell=7, predict=0.9)),
        Keep(KeepMasking()),
    ],
    ids=lambda masking: type(masking).__name__,
)
def test_every_patch_is_one_thing(masking: Random | Grid | Keep) -> None:
    masked = masking(torch.rand(64, 196), torch.rand(64, 196), (14, 14), 0.0)
    assert [part.shape[1] for part in (masked.shown, masked.dropped, masked.predicted)] == list(
        masking.counts(196, 0.0)
    )
    assert torch.equal(torch.cat(masked, dim=1).sort(dim=1).values, torch.arange(196).expand(64, -1))
    assert torch.equal(masked.predicted, masked.predicted.sort(dim=1).values)


def test_every_patch_has_its_turn() -> None:
    torch.manual_seed(0)
    for index in random(0.75, 0.25, torch.rand(4000, 16))[:2]:
        share = index.flatten().bincount(minlength=16) / 4000
        assert torch.all((share - 0.25).abs() < 0.03)


def test_a_grid_shows_one_patch_of_each_square() -> None:
    torch.manual_seed(0)
    masked = Grid(GridMasking(predict=0.25))(torch.rand(4000, 16), None, (4, 4), 0.0)
    shown = torch.zeros(4000, 16).scatter(1, masked.shown, 1.0).view(-1, 2, 2, 2, 2).permute(0, 1, 3, 2, 4)
    assert torch.all(shown.sum(dim=(3, 4)) == 1)
    assert torch.equal(shown, shown[:, :1, :1].expand_as(shown))  # the same place in each
    assert torch.all((shown.mean(dim=0) - 0.25).abs() < 0.03)
    predicted = torch.zeros(4000, 16).scatter(1, masked.predicted, 1.0)
    hidden = 1 - torch.zeros(4000, 16).scatter(1, masked.shown, 1.0)
    assert torch.all((predicted.sum(dim=0) / hidden.sum(dim=0) - 1 / 3).abs() < 0.03)  # whatever the place


def chances(weights: Tensor, count: int) -> Tensor:
    """The chance of each to be among the first `count` of a draw without replacement, by all the ways it can go."""
    total = torch.zeros(len(weights), dtype=torch.float64)
    for way in itertools.permutations(range(len(weights)), count):
        chance, left = 1.0, weights.sum().item()
        for index in way:
            chance, left = chance * weights[index].item() / left, left - weights[index].item()
        total[list(way)] += chance
    return total


def test_a_weighted_draw_includes_as_often_as_it_should() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
    order = weighted_order(torch.rand(200_000, 6), weights.expand(200_000, -1))
    for count in (1, 2, 3):
        share = order[:, :count].flatten().bincount(minlength=6) / 200_000
        assert torch.allclose(share.double(), chances(weights.double(), count), atol=0.004)  # 3.5 standard errors


def test_equal_weights_of_any_size_are_no_weights() -> None:
    noise = torch.rand(100, 49)
    for scale in (1e-6, 1.0, 1e6):
        assert torch.equal(weighted_order(noise, torch.full((100, 49), scale)), weighted_order(noise, None))


def test_patches_without_weight_come_last_and_in_any_order() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 1e-3, 0.0, 1.0]).expand(4000, -1)
    order = weighted_order(torch.rand(4000, 4), weights.half())
    assert torch.equal(order[:, :2].sort(dim=1).values, torch.tensor([1, 3]).expand(4000, -1))
    assert abs((order[:, 2] == 0).float().mean().item() - 0.5) < 0.04


def test_no_masking_reads_from_the_device() -> None:
    """What depends on data cannot be traced on the meta device, which holds none."""
    noise = torch.rand(2, 16, device="meta")
    for masking in (Random(RandomMasking()), Grid(GridMasking()), Keep(KeepMasking())):
        assert masking(noise, noise, (4, 4), 0.0).shown.device.type == "meta"
