"""`handwritten`: a data set for machines without one, made of real handwriting on real photographs.

    mimbench data make handwritten DIR            # or say data=handwritten, which writes it to the cache

    DIR/images/{train,val}/<digit>/*.png          one digit an image: pretraining and classification
    DIR/coco/{train2017,val2017}/*.jpg            several digits an image: detection (engine/data/handwritten_coco.py)
    DIR/coco/annotations/instances_{train,val}2017.json
    DIR/coco/labels/{train2017,val2017}/*.png      which digit each pixel shows: segmentation
    DIR/coco/labels/classes.txt                    names of its classes, by id
    DIR/about.json                                seed and sizes

The digits are the 1,797 scans that come with scikit-learn (8 x 8 pixels, NIST forms), a fifth of each class kept for
validation, so that no scan is in both splits; the backgrounds are dimmed crops of its two photographs. Two thirds to
nearly all of an image is digit, and the background dim: what a tiny CrossMAE can learn in minutes.

The same seed gives the same bytes, and image i is the same however many there are: each has its own random numbers,
and pixels are made by Pillow's integer arithmetic. It takes some seconds; the directory appears when it is complete.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.engine.data.datasets import HANDWRITTEN_VERSION, Split
from mimbench.engine.run.bar import track

SPLITS: tuple[Split, Split] = ("train", "val")
DIGITS = 10
BACKGROUND = 0.3  # brightness kept of a photograph; at .6 a CrossMAE of this size needs twice the steps
Content = tuple[str, bytes]  # a file: its path inside the data set, what is in it


@dataclass(frozen=True)
class Sizes:
    """How much to write. The defaults are those of `data=handwritten`."""

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
        """Images of the classification view."""
        return self.train if split == "train" else self.val

    def coco(self, split: Split) -> int:
        """Images of the COCO view."""
        return self.coco_train if split == "train" else self.coco_val


def make_handwritten(directory: str | Path, seed: int = 0, sizes: Sizes | None = None) -> Path:
    """Write the data set to `directory`, which must be new or empty, and return its path.

    Raises:
        FileExistsError: if there is something in `directory`.
        OSError: naming `directory`, if it cannot be written (nothing is left behind).
    """
    from mimbench.engine.data.handwritten_coco import coco_view

    sizes, directory = sizes or Sizes(), Path(directory).expanduser().absolute()
    with _complete_or_absent(directory) as temporary:
        material = Material(seed)
        views = [classification_view(material, sizes, seed), coco_view(material, sizes, seed)]
        coco = sum(sizes.coco(split) for split in SPLITS)
        images = coco + sum(sizes.images(split) for split in SPLITS)
        for name, content in track(chain(*views), "writing handwritten", images + coco + len(SPLITS) + 1):
            _write(temporary / name, content)
        about = {"generator": HANDWRITTEN_VERSION, "seed": seed, **asdict(sizes)}
        _write(temporary / "about.json", (json.dumps(about, indent=2) + "\n").encode())
    return directory


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)


@contextmanager
def _complete_or_absent(directory: Path) -> Iterator[Path]:
    """A temporary directory that becomes `directory` on a clean exit and is removed otherwise."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists already; name a new directory, or remove it first")
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def bundled() -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Image.Image]]:
    """What scikit-learn brings along: scans (1797, 8, 8) with bright ink, their digits (1797,), two photographs.

    Read from its files, as `load_digits` and `load_sample_images` do: importing it takes longer than the rest of this.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "datasets"
    table = np.loadtxt(folder / "data" / "digits.csv.gz", delimiter=",")
    scans = (table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    photographs = [np.asarray(Image.open(folder / "images" / name)) for name in ("china.jpg", "flower.jpg")]
    # by way of arrays, which leave behind the colour profile that would be written into every image
    return scans, table[:, 64].astype(np.int64), [Image.fromarray(photograph) for photograph in photographs]


class Material:
    """The scans, apart by split and digit, and the photographs."""

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
            raise ValueError(
                f"side={side} is more than the photographs have; choose at most {min(photographs[0].size)}"
            )

    def draw(self, rng: Random) -> Image.Image:
        """A random crop (side, side), RGB."""
        image = rng.choice(self.scaled)
        left, top = (rng.randrange(size - self.side + 1) for size in image.size)
        crop = image.crop((left, top, left + self.side, top + self.side))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.randrange(2) else crop


def ink(rng: Random) -> tuple[int, int, int]:
    """A light colour."""
    return rng.randrange(170, 256), rng.randrange(170, 256), rng.randrange(170, 256)


def classification_view(material: Material, sizes: Sizes, seed: int) -> Iterator[Content]:
    """One digit an image, classes in turn, every scan equally often, 60 to 95 % of the side, anywhere it fits."""
    backgrounds = Backgrounds(material.photographs, sizes.side)
    for split in SPLITS:
        for index in range(sizes.images(split)):
            rng = Random(f"{seed} images {split} {index}")
            turn, digit = divmod(index, DIGITS)
            scans = material.scans[split][digit]
            size = round(sizes.side * rng.uniform(0.60, 0.95))
            left, top = rng.randrange(sizes.side - size + 1), rng.randrange(sizes.side - size + 1)
            image = backgrounds.draw(rng)
            mask = scans[turn % len(scans)].resize((size, size), Image.Resampling.BICUBIC)
            image.paste(ink(rng), (left, top), mask)
            yield f"images/{split}/{digit}/{index:05d}.png", encode(image, "PNG", compress_level=0)


def encode(image: Image.Image, kind: str, **settings: int) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()
