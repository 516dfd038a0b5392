"""The shape of an encoder: what cannot be one."""

from __future__ import annotations

from typing import Any

import pytest

from mimbench.backbones.config import SIZES, ViT


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"heads": 5}, "multiple of heads=5"),
        ({"width": 18, "heads": 3}, "multiple of 4"),
        ({"image": 230}, "multiple of patch=16"),
        ({"heads": 0}, "heads=0"),
        ({"patch": -1}, "patch=-1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ViT(**sizes)


def test_the_published_sizes() -> None:
    assert [SIZES[name].grid for name in "SBLH"] == [14, 14, 14, 16]
    assert {name: vit.width // vit.heads for name, vit in SIZES.items()} == {"S": 64, "B": 64, "L": 64, "H": 80}
