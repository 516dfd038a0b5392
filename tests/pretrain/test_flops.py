"""What decoders compute, against the table that was worked out by hand from the sizes."""

from __future__ import annotations

import pytest

from mimbench.pretrain.flops import Flops, decoder_table

GFLOP = {  # MAE with 8 blocks; CrossMAE with 12, a quarter and all hidden patches predicted
    "S": (2.81, 1.04, 2.64),
    "B": (10.59, 4.09, 10.37),
    "L": (10.60, 4.40, 10.69),
    "H": (14.10, 6.17, 14.43),
}


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], Flops]:
    return {(row.size, row.name): row for row in decoder_table()}


@pytest.mark.parametrize("size", list(GFLOP))
def test_decoders_of_every_size(table: dict[tuple[str, str], Flops], size: str) -> None:
    names = ("MAE, 8 blocks", "CrossMAE .25, 12 blocks", "CrossMAE .75, 12 blocks")
    found = [table[size, name].decoder / 1e9 for name in names]
    assert found == pytest.approx(GFLOP[size], rel=0.01)


def test_integers_of_vit_b(table: dict[tuple[str, str], Flops]) -> None:
    """A token in a block: 24 d^2 and 4 T d of attention in MAE; 20 d^2, 4 T d, and keys and values in CrossMAE."""
    d, wide, tokens = 512, 768, 197
    mae = 8 * tokens * (24 * d * d + 4 * tokens * d) + 50 * 2 * wide * d
    cross = 12 * (49 * (20 * d * d + 4 * 50 * d) + 50 * 4 * wide * d)
    assert table["B", "MAE, 8 blocks"].decoder == mae
    assert table["B", "CrossMAE .25, 12 blocks"].decoder == cross
    assert table["B", "CrossMAE .25, 12 blocks"].mixing == 2 * 12 * 13 * 50 * wide


def test_the_encoder_is_the_same_whatever_decodes(table: dict[tuple[str, str], Flops]) -> None:
    assert len({row.encoder for row in table.values()}) == len(GFLOP)
