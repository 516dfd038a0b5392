"""Position tables for other grids, in every way that protocols do it, and patch kernels."""

from __future__ import annotations

import pytest
import timm.layers
import torch
import torch.nn.functional as F

from mimbench.backbones.positions import (
    fixed_table,
    resize_kernel,
    resize_positions,
    rows_first,
    sincos_2d,
    split_table,
)
from mimbench.backbones.vitdet import ViTDet
from tests.backbones.test_match import TINY, encoder


@pytest.fixture
def table() -> torch.Tensor:
    """A learned table of 4 x 4 patches and a class token."""
    return torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [(6, 6), (3, 3), (2, 7)])
def test_bicubic_is_what_mae_and_vitdet_do(table: torch.Tensor, grid: tuple[int, int]) -> None:
    patches = table[:, 1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.equal(resize_positions(table, grid)[:, 1:], expected)


@pytest.mark.parametrize("grid", [(6, 6), (3, 3), (2, 7)])
def test_antialiased_is_what_timm_does(table: torch.Tensor, grid: tuple[int, int]) -> None:
    expected = timm.layers.resample_abs_pos_embed(table, list(grid), num_prefix_tokens=1)
    torch.testing.assert_close(resize_positions(table, grid, "bicubic-antialias"), expected)
    assert not torch.allclose(expected, resize_positions(table, grid), atol=1e-2)


def test_the_offset_is_dinos(table: torch.Tensor) -> None:
    patches = table[:, 1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, scale_factor=(5.1 / 4, 3.1 / 4), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(resize_positions(table, (5, 3), "bicubic-offset")[:, 1:], expected)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("token", [False, True])
def test_a_fixed_table_is_made_anew_of_its_own_kind(first: bool, token: bool) -> None:
    old, new = fixed_table(16, (4, 4), first), fixed_table(16, (3, 5), first)
    if token:
        old, new = (torch.cat([torch.zeros(1, 1, 16), part], dim=1) for part in (old, new))
    assert rows_first(old) is first
    assert torch.equal(resize_positions(old, (3, 5), "regenerate"), new)


def test_mocos_table_is_maes_transposed() -> None:
    mae = sincos_2d(16, (4, 4), class_token=False).view(4, 4, 16)
    assert torch.equal(fixed_table(16, (4, 4), rows_first=True).view(4, 4, 16), mae.transpose(0, 1))


def test_a_learned_table_cannot_be_made_anew(table: torch.Tensor) -> None:
    assert rows_first(table) is None
    with pytest.raises(ValueError, match="positions=regenerate"):
        resize_positions(table, (6, 6), "regenerate")


def test_the_class_token_is_told_by_the_number_of_rows(table: torch.Tensor) -> None:
    assert [part.shape[1] for part in split_table(table)] == [16, 1]
    assert [part.shape[1] for part in split_table(torch.zeros(1, 196, 8))] == [196, 0]
    assert [part.shape[1] for part in split_table(torch.zeros(1, 785, 8))] == [784, 1]
    assert resize_positions(table, (4, 4)) is table
    assert torch.equal(resize_positions(table, (6, 6))[:, :1], table[:, :1])
    with pytest.raises(ValueError, match="of 12 rows"):
        resize_positions(torch.zeros(1, 12, 8), (2, 2))


def test_a_kernel_for_patches_of_16_is_vitdets() -> None:
    kernel = encoder()["patch_embed.proj.weight"]
    assert resize_kernel(kernel, 8) is kernel
    net = ViTDet(TINY.__class__(64, 2, 1, 16, 64), image=64, window=2, global_blocks=(1,))
    net.load_encoder(encoder(final_norm=False))
    assert torch.equal(net.patch_embed.proj.weight, resize_kernel(kernel, 16))
