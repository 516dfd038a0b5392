"""The interface every encoder implements, and the only one evaluations use."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Features(NamedTuple):
    """The features of a batch of images."""

    pooled: Tensor  # (B, D)
    grid: Tensor  # (B, h, w, D), row-major patches


class Encoder(Protocol):
    """An image encoder: images (B, 3, H, W), ImageNet-normalised, to `Features`."""

    patch: int
    width: int

    def __call__(self, images: Tensor) -> Features:
        """Return the pooled feature and the grid of patch features of each image."""
        ...
