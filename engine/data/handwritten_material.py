"""The material of both views of `handwritten`: scans of digits, crops of photographs, and the numbers of images.

The digits are the 1,797 scans in scikit-learn (8 x 8 pixels, NIST forms); a fifth of each class is reserved for
validation, so no scan is in both splits. The backgrounds are dimmed crops of scikit-learn's two photographs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.engine.data.splits import Split

DIGITS = 10
BACKGROUND = 0.3  # brightness factor of photographs; with .6 a CrossMAE of this size needs twice the steps
Content = tuple[str, bytes]  # a file: its path inside the data set, its bytes


@dataclass(frozen=True)
class Sizes:
    """The numbers and sizes of images. The defaults are those of `data=handwritten`."""

    train: int = 7_000  # images, ten classes in turn
    val: int = 1_400
    side: int = 64  # pixels
    coco_train: int = 2_000
    coco_val: int = 300
    coco_side: int = 128

    def __post_init__(self) -> None:
        for name, least in {
            "train": 10,
            "val": 10,
            "side": 16,
            "coco_train": 8,
            "coco_val": 8,
            "coco_side": 64,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def images(self, split: Split) -> int:
        """Return the number of images of the classification view."""
        return self.train if split == "train" else self.val

    def coco(self, split: Split) -> int:
        """Return the number of images of the COCO view."""
        return self.coco_train if split == "train" else self.coco_val


def bundled() -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Image.Image]]:
    """Return scikit-learn's data: scans (1797, 8, 8) with bright ink, their digits (1797,), two photographs.

    Reads its files as `load_digits` and `load_sample_images` do: importing scikit-learn takes longer than all else.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "datasets"
    table = np.loadtxt(folder / "data" / "digits.csv.gz", delimiter=",")
    scans = (table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    photographs = [np.asarray(Image.open(folder / "images" / name)) for name in ("china.jpg", "flower.jpg")]
    # via arrays, which drop the colour profile that would otherwise be written into every image
    return scans, table[:, 64].astype(np.int64), [Image.fromarray(photograph) for photograph in photographs]


class Material:
    """The scans, grouped by split and digit, and the photographs."""

    def __init__(self, seed: int) -> None:
        scans, targets, self.photographs = bundled()
        self.scans: dict[Split, list[list[Image.Image]]] = {"train": [], "val": []}
        for digit in range(DIGITS):
            mine = [Image.fromarray(scan) for scan in scans[targets == digit]]
            Random(f"{seed} scans {digit}").shuffle(mine)
            held_out = len(mine) // 5
            self.scans["val"].append(mine[:held_out])
            self.scans["train"].append(mine[held_out:])


class Backgrounds:
    """Dimmed square crops of the photographs, at several magnifications."""

    def __init__(self, photographs: list[Image.Image], side: int) -> None:
        self.side = side
        self.scaled = []
        for photograph in photographs:
            dim = photograph.point([int(level * BACKGROUND) for level in range(256)] * 3)
            for factor in (1.5, 2, 3, 4, 6, 8):
                shrink = max(1.0, min(dim.size) / (factor * side))
                self.scaled.append(
                    dim.resize((round(dim.width / shrink), round(dim.height / shrink)), Image.Resampling.BICUBIC)
                )
        if min(min(image.size) for image in self.scaled) < side:
            raise ValueError(f"side={side} exceeds the photographs; choose at most {min(photographs[0].size)}")

    def draw(self, rng: Random) -> Image.Image:
        """Return a random crop (side, side), RGB."""
        image = rng.choice(self.scaled)
        left, top = (rng.randrange(size - self.side + 1) for size in image.size)
        crop = image.crop((left, top, left + self.side, top + self.side))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.randrange(2) else crop


def ink(rng: Random) -> tuple[int, int, int]:
    """Return a random light colour."""
    return rng.randrange(170, 256), rng.randrange(170, 256), rng.randrange(170, 256)


def encode(image: Image.Image, kind: str, **settings: int) -> bytes:
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()
