"""What every encoder gives, and all that an evaluation may ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Features(NamedTuple):
    """What an encoder sees in a batch of images."""

    pooled: Tensor  # (B, D)
    grid: Tensor  # (B, h, w, D), row-major patches


class Encoder(Protocol):
    """An image encoder: images (B, 3, H, W), ImageNet-normalised, to `Features`."""

    patch: int
    width: int

    def __call__(self, images: Tensor) -> Features:
        """The pooled feature and the grid of patch features of each image."""
        ...
