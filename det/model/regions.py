"""The regions that the heads are trained on."""

# R region of interest

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from mimbench.det.config import LossWeights
from mimbench.det.model.loss_weights import loss_weights


class Regions(NamedTuple):
    """Regions of a batch, ordered by image, each with its target object."""

    regions: Tensor  # (R, 5) index of the image, box
    labels: Tensor  # (R,) 0..K-1, K background
    targets: Tensor  # (R, 4) box of the object; arbitrary for background
    objects: Tensor  # (R,) index of the object in its image
    counts: Sequence[int]  # regions of each image
    shown: Tensor  # indices of the positive regions, ascending
    levels: Sequence[int]  # regions of each pyramid map, for `RegionPooler`

    @property
    def boxes(self) -> Tensor:
        """(R, 4)."""
        return self.regions[:, 1:]

    def loss_weights(self, mode: LossWeights) -> Tensor:
        """Return the weight of each region in a mean over regions, (R,)."""
        return loss_weights(self.regions[:, 0], len(self.counts), mode)
