"""Which patches are shown and predicted."""

from __future__ import annotations

import pytest
import torch

from pretrain.masking import counts, mask_patches


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
    assert counts(patches, mask, predict) == expected


def test_nothing_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves none of 4 patches"):
        counts(4, 0.9, 0.9)


def noise() -> torch.Tensor:
    image, patch = torch.meshgrid(torch.arange(2), torch.arange(16), indexing="ij")
    return (0.6180339887498949 * (patch.double() + 1) + 0.37 * image) % 1


def test_the_patches_the_original_predicts() -> None:
    """Positions of the first image, from the authors' code with the same noise."""
    assert mask_patches(noise(), 0.75, 0.25).predicted[0].tolist() == [2, 7, 10, 15]
    every = mask_patches(noise(), 0.75, 0.75)
    assert every.predicted[0].tolist() == [0, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 15]
    assert set(every.shown[0].tolist()) == {1, 4, 9, 12}


def test_shown_and_predicted_never_meet() -> None:
    shown, predicted = mask_patches(torch.rand(64, 196), 0.75, 0.25)
    both = torch.cat([shown, predicted], dim=1)
    assert all(len(row.unique()) == 98 for row in both)
    assert torch.equal(predicted, predicted.sort(dim=1).values)


def test_every_patch_has_its_turn() -> None:
    torch.manual_seed(0)
    shown, predicted = mask_patches(torch.rand(4000, 16), 0.75, 0.25)
    for index in (shown, predicted):
        share = index.flatten().bincount(minlength=16) / 4000
        assert torch.all((share - 0.25).abs() < 0.03)
