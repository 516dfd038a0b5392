"""The result of reading a layout: the files of one split, their labels, and the class names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.folders import Files, Selected

# N image


@dataclass
class Listing:
    """The images of one split.

    Attributes:
        files: the encoded images.
        labels: int64 (N,), places in `classes`.
        classes: their names.
        layout: what was recognised, in words.
        splitless: the data set has no splits, so that both are all of it.
        pixels: uint8 (N, 3, H, W) where the images are raw arrays, lying in memory by pixel (channels last).
        facts: what of the images' making changes the numbers, for `result.json`.
    """

    files: Files
    labels: Tensor
    classes: list[str]
    layout: str
    splitless: bool = False
    pixels: Tensor | None = None
    facts: dict[str, object] = field(default_factory=dict)

    def chosen(self, places: np.ndarray, facts: dict[str, object]) -> Listing:
        """The images at `places` only, with all classes."""
        chosen = torch.from_numpy(places)
        pixels = None if self.pixels is None else self.pixels.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)
        files = Selected(self.files, places)
        return Listing(
            files, self.labels[chosen], self.classes, self.layout, self.splitless, pixels, {**self.facts, **facts}
        )


def by_class_and_name(files: Files, labels: list[int], classes: list[str], layout: str) -> Listing:
    """Images in the order of class folders: by class, then by name."""
    names = [files.name(place) for place in range(len(files))]
    places = sorted(range(len(files)), key=lambda place: (labels[place], names[place]))
    listing = Listing(files, torch.tensor(labels, dtype=torch.int64), classes, layout)
    return listing.chosen(np.array(places, dtype=np.int64), {})


def require_known(places: dict[str, int], name: str, of: Path) -> int:
    """The number of class `name`.

    Raises:
        UnfitError: (a ValueError) if the training split has no such class.
    """
    if name not in places:
        raise unfit(of, f"names class {name}, which the training split lacks", "add the class there, or remove it")
    return places[name]
