"""`handwritten`: a data set for machines without one, generated from real handwriting on real photographs.

    mimbench data make handwritten DIR            # or use data=handwritten, which writes it to the cache

    DIR/images/{train,val}/<digit>/*.png          one digit per image: pretraining and classification
    DIR/coco/{train2017,val2017}/*.jpg            several digits per image: detection (engine/data/handwritten_coco.py)
    DIR/coco/annotations/instances_{train,val}2017.json
    DIR/coco/labels/{train2017,val2017}/*.png      the digit at each pixel: segmentation
    DIR/coco/labels/classes.txt                    names of its classes, by id
    DIR/about.json                                seed and sizes

The digits are the 1,797 scans in scikit-learn (8 x 8 pixels, NIST forms); a fifth of each class is reserved for
validation, so no scan is in both splits. The backgrounds are dimmed crops of scikit-learn's two photographs. The digit
fills two thirds to nearly all of an image, so that a tiny CrossMAE can learn in minutes.

The same seed produces the same bytes, and image i does not depend on the number of images: each has its own random
numbers, and Pillow computes pixels in integer arithmetic. It takes some seconds; the directory appears when complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from random import Random

from PIL import Image

from mimbench.engine.data.handwritten_coco import coco_view
from mimbench.engine.data.handwritten_material import DIGITS, Backgrounds, Content, Material, Sizes, encode, ink
from mimbench.engine.data.splits import HANDWRITTEN_VERSION, SPLITS
from mimbench.engine.run.bar import track


def make_handwritten(directory: str | Path, seed: int = 0, sizes: Sizes | None = None) -> Path:
    """Write the data set to `directory`, which must be new or empty, and return its path.

    Raises:
        FileExistsError: if `directory` is not empty.
        OSError: naming `directory`, if it cannot be written (nothing is left behind).
    """
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
    """Yield a temporary directory that is renamed to `directory` on a clean exit and removed otherwise."""
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


def classification_view(material: Material, sizes: Sizes, seed: int) -> Iterator[Content]:
    """Yield the images: one digit each, classes in turn, scans equally often, 60 to 95 % of the side, at random."""
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
