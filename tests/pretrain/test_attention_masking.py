"""AMT's masking against the authors' numbers, closed forms and long simulations.

`golden/amt.json` was computed by the authors' code (golden/amt.py), never by ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.config import ViT
from mimbench.engine.data.images import Crop
from mimbench.pretrain.config import AttentionMasking, CrossMAEConfig, MAEConfig, Pretrain
from mimbench.pretrain.masking.attention import (
    LEAST,
    MaskAndThrow,
    as_published,
    class_attention,
    follow_crops,
    weight_map,
)
from mimbench.pretrain.masking.strategies import Counts
from mimbench.pretrain.masking.units import InUnits, unit_patches
from mimbench.pretrain.methods.table import build_masking, build_method
from tests.pretrain.golden.amt import BOXES, one_map, order
from tests.pretrain.originals import gradient_norms, sine_filled, sines

AMT = AttentionMasking(start_epoch=0)
GRID = (14, 14)


@cache
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "amt.json").read_text())
    return found


def noise_for(order_BN: Tensor) -> Tensor:
    """Noise with which equal weights are drawn in this order: the first to be drawn has the most of it."""
    rank_BN = order_BN.argsort(dim=1)
    return 1 - (rank_BN + 1) / (order_BN.shape[1] + 1)


# ----------------------------------------------------------------------------------------------------- counts, schedule


@pytest.mark.parametrize(
    ("config", "patches", "epoch", "expected"),
    [  # facts of the authors' code: masked, thrown, visible of 196, and SimMIM's 7 x 7 units
        (AttentionMasking(), 196, 0, (49, 0, 147)),
        (replace(AMT, mask_ratio=0.75, throw=0.0), 196, 41, (49, 0, 147)),
        (AMT, 196, 41, (30, 78, 88)),
        (replace(AMT, mask_ratio=0.60, throw=0.15), 196, 41, (49, 30, 117)),
        (replace(AMT, mask_ratio=0.44, throw=0.26, unit=2), 49, 41, (14, 13, 22)),
    ],
)
def test_counts_are_those_of_the_authors(
    config: AttentionMasking, patches: int, epoch: float, expected: tuple[int, int, int]
) -> None:
    assert MaskAndThrow(config, 400).counts(patches, epoch) == Counts(*expected)


def test_simmims_units_leave_a_square_of_twelve_patches() -> None:
    config = AttentionMasking(mask_ratio=0.44, throw=0.26, unit=2, random_mask=0.44, random_predict=0.44)
    masking = build_masking(config, ViT(), 400)
    assert masking.counts(196, 41) == (56, 52, 88)
    assert 56 + 88 == 12 * 12
    assert masking.counts(196, 40) == (108, 0, 88)


def test_nothing_left_to_see_is_refused() -> None:
    with pytest.raises(ValueError, match=r"throw=0.6 must lie in \[0, 0.55\)"):
        AttentionMasking(throw=0.6)
    with pytest.raises(ValueError, match=r"mask_ratio=0.44 and throw=0.5 leave none of 4 patches"):
        build_masking(replace(AMT, mask_ratio=0.44, throw=0.5, unit=2), ViT(16, 1, 2, 8, 32), 5)
    with pytest.raises(ValueError, match="9 patches cannot be divided into squares of unit=2"):
        build_masking(replace(AMT, unit=2), ViT(16, 1, 2, 8, 24), 5)


def test_the_published_schedule() -> None:
    schedule = AttentionMasking().schedule(400)
    assert schedule == AttentionMasking(start_epoch=41, interval=40).schedule(400)
    renewed = [epoch for epoch in range(400) if schedule.begins(epoch)]
    assert renewed == [41, 81, 121, 161, 201, 241, 281, 321, 361]  # after the 40th, 80th, ... 360th, from 0
    assert [schedule.in_force(epoch) for epoch in (0, 40.99, 41, 80, 81, 399.9)] == [None, None, 41, 41, 81, 361]


def test_a_schedule_fits_any_length() -> None:
    assert AttentionMasking().schedule(15) == (2, 1)
    assert AttentionMasking().schedule(1) == (0, 1)
    with pytest.raises(ValueError, match=r"masking.start_epoch=41 must be less than epochs=20"):
        Pretrain(masking=AttentionMasking(start_epoch=41), epochs=20, warmup_epochs=1)


# ------------------------------------------------------------------------------------------------------------- the draw


def test_masked_and_thrown_away_are_the_authors() -> None:
    """With the draw that the authors' code was given, its flags: 1 masked, -1 thrown away, 0 seen."""
    masked = MaskAndThrow(AMT, 1)(noise_for(order(36)), torch.ones(2, 36), (6, 6), 0.0)
    flags = torch.zeros(2, 36, dtype=torch.int64)
    flags.scatter_(1, masked.predicted, 1).scatter_(1, masked.dropped, -1)
    assert flags.tolist() == golden()["raw_pixels"]["flags"]
    assert torch.equal(masked.predicted, masked.predicted.sort(dim=1).values)


def drawn_sets(weights: list[float], first: int, second: int) -> dict[tuple[frozenset[int], frozenset[int]], float]:
    """Chances of which patches are drawn first and which next, without replacement: the sum over all orders."""
    chances: dict[tuple[frozenset[int], frozenset[int]], float] = {}
    for drawn in permutations(range(len(weights)), first + second):
        chance, left = 1.0, sum(weights)
        for patch in drawn:
            chance, left = chance * weights[patch] / left, left - weights[patch]
        key = frozenset(drawn[:first]), frozenset(drawn[first:])
        chances[key] = chances.get(key, 0.0) + chance
    return chances


def test_what_is_masked_and_thrown_away_has_the_chances_of_a_weighted_draw() -> None:
    weights, images = [0.05, 1.0, 0.4, 2.0, 0.7, 0.1], 200_000
    config = replace(AMT, mask_ratio=0.34, throw=0.34)  # two masked, two thrown away, two seen
    noise = torch.rand(images, 6, generator=torch.Generator().manual_seed(0))
    masked = MaskAndThrow(config, 1)(noise, torch.tensor(weights).expand(images, -1), (2, 3), 0.0)
    codes = (1 << masked.predicted).sum(1) * 64 + (1 << masked.dropped).sum(1)
    found = dict(zip(*(values.tolist() for values in codes.unique(return_counts=True)), strict=True))
    for (first, second), chance in drawn_sets(weights, 2, 2).items():
        code = sum(1 << patch for patch in first) * 64 + sum(1 << patch for patch in second)
        deviation = (chance * (1 - chance) / images) ** 0.5
        assert found.get(code, 0) / images == pytest.approx(chance, abs=5 * deviation)


def test_chances_are_those_of_torchs_multinomial() -> None:
    """196 patches, as in use: the share of draws in which each is masked, thrown away or seen."""
    images = 8_000
    weights = one_map().flatten().clamp_min(LEAST)
    generator = torch.Generator().manual_seed(0)
    masked = MaskAndThrow(AMT, 1)(torch.rand(images, 196, generator=generator), weights.expand(images, -1), GRID, 0.0)
    torch.manual_seed(1)
    drawn = torch.multinomial(weights.expand(images, -1), 196)
    for ours, theirs in zip(
        (masked.predicted, masked.dropped, masked.shown), drawn.split((88, 78, 30), dim=1), strict=True
    ):
        share, expected = (index.flatten().bincount(minlength=196) / images for index in (ours, theirs))
        assert (share - expected).abs().max() < 6 * (0.5 / images) ** 0.5  # deviations of a difference, at the most
    share = masked.predicted.flatten().bincount(minlength=196) / images
    assert torch.corrcoef(torch.stack([share, weights]))[0, 1] > 0.97  # the more attention, the more often masked


def test_equal_weights_and_nothing_thrown_away_is_maes_masking() -> None:
    images = 20_000
    config = replace(AMT, mask_ratio=0.75, throw=0.0)
    noise = torch.rand(images, 16, generator=torch.Generator().manual_seed(0))
    masked = MaskAndThrow(config, 1)(noise, torch.ones(images, 16), (4, 4), 0.0)
    assert masked.dropped.shape == (images, 0)
    together = F.one_hot(masked.shown, 16).sum(1).float()
    pairs = together.T @ together / images
    assert torch.allclose(pairs.diag(), torch.tensor(1 / 4), atol=0.015)
    off = pairs[~torch.eye(16, dtype=torch.bool)]
    assert torch.allclose(off, torch.tensor(4 * 3 / (16 * 15)), atol=0.008)


def test_patches_of_no_weight_come_last_and_in_random_order() -> None:
    weights = torch.zeros(2000, 16)
    weights[:, 5] = 0.2
    noise = torch.rand(2000, 16, generator=torch.Generator().manual_seed(0))
    masked = MaskAndThrow(replace(AMT, mask_ratio=0.1, throw=0.5), 1)(noise, weights, (4, 4), 0.0)
    assert masked.predicted.eq(5).all()
    seen = masked.shown.flatten().bincount(minlength=16) / 2000
    assert seen[5] == 0
    assert torch.allclose(seen[torch.arange(16) != 5], torch.tensor(7 / 15), atol=0.06)


def test_before_the_first_maps_patches_are_drawn_alike_without_weights() -> None:
    masking = MaskAndThrow(AttentionMasking(random_predict=0.25), 400)
    masked = masking(torch.rand(2, 196), None, GRID, 40.9)
    assert [index.shape[1] for index in masked] == [49, 49, 98]


def test_without_weights_all_patches_are_alike() -> None:
    """Validation images have no maps, and a schedule may begin with attention."""
    noise = torch.rand(20_000, 16, generator=torch.Generator().manual_seed(0))
    for masking in (
        MaskAndThrow(AMT, 1),
        InUnits(MaskAndThrow(replace(AMT, mask_ratio=0.25, throw=0.25, unit=2), 1), 2),
    ):
        masked = masking(noise, None, (4, 4), 0.0)
        share = masked.predicted.flatten().bincount(minlength=16) / len(noise)
        assert torch.allclose(share, torch.full((16,), masked.predicted.shape[1] / 16), atol=0.02)


def test_units_hold_together() -> None:
    masking = InUnits(MaskAndThrow(replace(AMT, mask_ratio=0.44, throw=0.26, unit=2), 1), 2)
    weights = torch.rand(3, 196, generator=torch.Generator().manual_seed(0))
    masked = masking(torch.rand(3, 196), weights, GRID, 0.0)
    units = torch.arange(49).view(7, 7).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    for index in masked:
        assert (index.shape[1] // 4) * 4 == index.shape[1]
        for row in index:
            assert units[row].bincount(minlength=49).unique().tolist() == [0, 4]
    assert unit_patches(torch.tensor([[8]]), 14, 2).tolist() == [[30, 31, 44, 45]]
    every = torch.cat(list(masked), dim=1).sort(dim=1).values
    assert torch.equal(every, torch.arange(196).expand(3, -1))


def test_a_units_weight_is_the_sum_of_its_patches() -> None:
    weights = torch.full((4000, 16), 0.25)
    weights[:, [0, 1, 4, 5]] = torch.tensor([1.0, 0.0, 0.0, 2.0])  # 3 in all, beside units of 1
    masking = InUnits(MaskAndThrow(replace(AMT, mask_ratio=0.25, throw=0.25, unit=2), 1), 2)
    noise = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0))
    first = masking(noise, weights, (4, 4), 0.0).predicted[:, 0].eq(0).float().mean()
    assert first == pytest.approx(3 / 6, abs=0.04)


# ---------------------------------------------------------------------------------------------------------------- crops


def crop_of(top: int, left: int, height: int, width: int, size: tuple[int, int], flip: bool = False) -> Crop:
    return Crop(*(torch.tensor([value]) for value in (top, left, height, width, flip, *size)))  # type: ignore[arg-type]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (3, 9), (13, 13), (7, 2)])
def test_the_place_that_is_attended_to_stays_with_its_image(place: tuple[int, int], flip: bool) -> None:
    """One cell of a map, and the same cell of the image white: after the crop the brightest patch weighs most."""
    size = (280, 420)
    spot = torch.zeros(14, 14)
    spot[place] = 1
    image = spot.repeat_interleave(20, 0).repeat_interleave(30, 1)
    top, left = max(0, place[0] * 20 - 55), max(0, place[1] * 30 - 70)
    height, width = min(120, size[0] - top), min(170, size[1] - left)
    weights = follow_crops(spot[None], crop_of(top, left, height, width, size, flip)).view(14, 14)
    cut = image[top : top + height, left : left + width]
    bright = F.adaptive_avg_pool2d((cut.flip(-1) if flip else cut)[None], GRID)[0]
    centre = [(grid.sum(1) @ torch.arange(14.0) / grid.sum()).item() for grid in (bright, weights)]
    across = [(grid.sum(0) @ torch.arange(14.0) / grid.sum()).item() for grid in (bright, weights)]
    assert centre[0] == pytest.approx(centre[1], abs=0.8)
    assert across[0] == pytest.approx(across[1], abs=0.8)
    assert bright.flatten()[weights.argmax()] > 0.9


def test_a_crops_weights_are_means_over_its_patches_of_the_enlarged_map() -> None:
    """Against the slow, obvious way: enlarge the map to the image, cut, average within each patch."""
    torch.manual_seed(0)
    maps, size = torch.rand(4, 14, 14), (1120, 1120)
    boxes = [(0, 0, 1120, 1120), (112, 336, 560, 672), (700, 14, 420, 280), (280, 560, 840, 560)]
    enlarged = F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]
    for number, (top, left, height, width) in enumerate(boxes):
        crop = crop_of(top, left, height, width, size)
        expected = F.adaptive_avg_pool2d(enlarged[number, top : top + height, left : left + width][None], GRID)[0]
        found = follow_crops(maps[number : number + 1], crop).view(14, 14)
        assert (found - expected).abs().max() < 0.02, boxes[number]


def test_no_patch_of_a_crop_is_without_weight() -> None:
    assert follow_crops(torch.zeros(1, 14, 14), crop_of(10, 10, 50, 50, (100, 100))).unique().item() == pytest.approx(
        LEAST
    )


@pytest.mark.parametrize("name", BOXES)
def test_the_original_crop_is_the_authors_bit_for_bit(name: str) -> None:
    (top, left, height, width), size, flip = BOXES[name]
    weights = as_published(one_map()[None], crop_of(top, left, height, width, size, flip))
    assert weights[0].tolist() == golden()["crops"][name]


def test_the_original_crop_loses_the_place_that_is_attended_to() -> None:
    """Why it is not the default: what lies beyond the first rows and columns has no influence."""
    crop = crop_of(50, 50, 200, 250, (375, 500))
    spot = torch.zeros(1, 14, 14)
    spot[0, 7, 7] = 1
    assert as_published(spot, crop).max() == 0
    assert follow_crops(spot, crop).max() > 0.5


def test_the_original_crop_wants_the_grid_it_was_written_for() -> None:
    with pytest.raises(ValueError, match=r"crop_mode=original .*9 x 9"):
        as_published(torch.ones(1, 9, 9), crop_of(0, 0, 5, 5, (10, 10)))


# ------------------------------------------------------------------------------------------------------------ attention


def heads_of_fourteen() -> Any:
    """The encoder that the authors' `update_mask` was given: 12 heads and 14 x 14 patches are fixed in it."""
    return sine_filled(build_method(MAEConfig(depth=1, width=32, heads=4), ViT(48, 2, 12, 8, 112)))


def test_weight_maps_are_the_authors() -> None:
    with torch.no_grad():
        maps = weight_map(class_attention(heads_of_fourteen(), sines(2, 3, 112, 112)))
    assert maps.flatten().tolist() == pytest.approx(golden()["weight_maps"], rel=2e-5, abs=2e-6)


def test_attention_is_what_the_last_block_computes() -> None:
    """Against the whole matrix of attention, which the block would have to keep."""
    torch.manual_seed(0)
    method = build_method(CrossMAEConfig(depth=1, width=16, heads=2), ViT(16, 3, 2, 4, 16)).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    last: Any = method.blocks[-1]  # type: ignore[index]
    tokens = last.norm1(method.forward_tokens(images)[-2])  # type: ignore[operator]
    q, k, _ = last.attn.qkv(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    whole = (q @ k.transpose(-2, -1) / 8**0.5).softmax(dim=-1)
    assert torch.allclose(class_attention(method, images), whole[:, :, 0, 1:])


def test_blocks_that_are_not_trained_are_not_asked() -> None:
    torch.manual_seed(0)
    method = build_method(CrossMAEConfig(depth=1, width=16, heads=2, feature_maps=(0,)), ViT(16, 3, 2, 4, 16))
    images = torch.randn(1, 3, 16, 16)
    before = class_attention(method, images)
    for parameter in method.blocks[1:].parameters():  # type: ignore[index, union-attr]
        torch.nn.init.zeros_(parameter)
    assert torch.equal(class_attention(method, images), before)


def test_maps_lie_between_0_and_1_also_where_a_head_attends_alike_everywhere() -> None:
    attention = torch.rand(3, 4, 196)
    attention[:, 2] = 1 / 197
    maps = weight_map(attention)
    assert maps.shape == (3, 196)
    assert maps.min() >= 0
    assert 0.5 < maps.max() <= 0.75 + 1e-6  # the fourth head adds nothing


# ----------------------------------------------------------------------------------------------------- MAE and CrossMAE


def cases() -> Iterator[Any]:
    yield from ("raw_pixels", "norm_pix")


@pytest.mark.parametrize("name", cases())
def test_loss_and_gradients_of_mae_with_amt_are_the_authors(name: str) -> None:
    """16 of 36 patches masked, 14 thrown away, 6 seen."""
    config = MAEConfig(depth=2, width=32, heads=4, norm_pix=name == "norm_pix")
    model = sine_filled(build_method(config, ViT(48, 3, 4, 8, 48)))
    masked = MaskAndThrow(AMT, 1)(noise_for(order(36)), torch.ones(2, 36), (6, 6), 0.0)
    loss = model(sines(2, 3, 48, 48), masked)
    loss.backward()
    assert loss.item() == pytest.approx(golden()[name]["loss"], rel=1e-7)
    found = gradient_norms(model)
    assert found.keys() == golden()[name]["gradients"].keys()
    for parameter, norm in golden()[name]["gradients"].items():
        assert found[parameter] == pytest.approx(norm, rel=1e-5, abs=1e-10), parameter


@pytest.mark.parametrize("config", [MAEConfig(depth=1, width=16, heads=2), CrossMAEConfig(depth=1, width=16, heads=2)])
def test_the_loss_does_not_depend_on_what_is_thrown_away(config: MAEConfig | CrossMAEConfig) -> None:
    torch.manual_seed(0)
    model = build_method(config, ViT(16, 2, 2, 4, 16))
    images = torch.randn(1, 3, 16, 16)
    masked = MaskAndThrow(AMT, 1)(torch.rand(1, 16), torch.ones(1, 16), (4, 4), 0.0)
    loss = model(images, masked)
    changed = images.clone().unflatten(3, (4, 4)).unflatten(2, (4, 4)).transpose(3, 4).flatten(2, 3)
    changed[:, :, masked.dropped[0]] += 3
    changed = changed.unflatten(2, (4, 4)).transpose(3, 4).flatten(4).flatten(2, 3)
    assert not torch.equal(changed, images)
    assert torch.equal(model(changed, masked), loss)
