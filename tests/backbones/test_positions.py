"""Position tables, by the papers' formula, and their change of size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mimbench.backbones.positions import resize_positions, sincos_2d, square_side


def test_the_table_is_the_formula() -> None:
    table = sincos_2d(8, (3, 5))[0, 1:].view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            half = [[f(t * 10000.0 ** (-i / 2)) for f in (math.sin, math.cos) for i in range(2)] for t in (column, row)]
            assert torch.allclose(table[row, column], torch.tensor(half[0] + half[1]), atol=1e-6)


def test_the_class_token_comes_first_and_is_zero() -> None:
    table = sincos_2d(48, (4, 4))
    assert table.shape == (1, 17, 48)
    assert not table[0, 0].any()
    assert torch.equal(table[:, 1:], sincos_2d(48, (4, 4), class_token=False))


def test_the_authors_table_of_vit_s() -> None:
    """The sum of absolute values that CrossMAE's code gives (ViT-S at 224 pixels)."""
    assert sincos_2d(384, (14, 14)).abs().sum().item() == pytest.approx(42100.2079, abs=0.01)


def test_a_width_that_is_not_a_multiple_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(6, (2, 2))


def test_resizing_keeps_the_class_token_and_takes_other_shapes() -> None:
    table = torch.randn(1, 17, 8)
    resized = resize_positions(table, (8, 6))
    assert resized.shape == (1, 49, 8)
    assert torch.equal(resized[:, 0], table[:, 0])
    grid = F.interpolate(table[:, 1:].view(1, 4, 4, 8).permute(0, 3, 1, 2), (8, 6), mode="bicubic")
    assert torch.equal(resized[0, 1:].view(8, 6, 8), grid[0].permute(1, 2, 0))


def test_the_same_grid_is_the_same_table() -> None:
    table = torch.randn(1, 17, 8)
    assert resize_positions(table, (4, 4)) is table


@pytest.mark.parametrize("rows", [0, 1, 4, 196])
def test_a_table_of_no_square_grid_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="square grid"):
        square_side(torch.zeros(1, rows, 8))
