"""Small data sets with label maps, painted anew for each test that asks for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

COLOURS = {0: (40, 40, 40), 1: (230, 200, 60), 2: (60, 120, 240)}  # ground, disc, bar


def scene(rng: Random, size: tuple[int, int] = (48, 64)) -> tuple[Image.Image, Image.Image]:
    """A picture of a disc and a bar on the ground, and its label map: 0, 1, 2, and 255 on a rim."""
    width, height = size[1], size[0]
    image, labels = Image.new("RGB", (width, height), COLOURS[0]), Image.new("L", (width, height), 0)
    x, y, r = rng.uniform(12, 20), rng.uniform(14, 34), rng.uniform(8, 11)
    ImageDraw.Draw(labels).ellipse((x - r - 1, y - r - 1, x + r + 1, y + r + 1), fill=255)
    for canvas, fill in ((image, COLOURS[1]), (labels, 1)):
        ImageDraw.Draw(canvas).ellipse((x - r, y - r, x + r, y + r), fill=fill)
    left, top = rng.uniform(36, 40), rng.uniform(3, 10)
    for canvas, fill in ((image, COLOURS[2]), (labels, 2)):
        ImageDraw.Draw(canvas).rectangle((left, top, left + rng.uniform(14, 18), top + 24), fill=fill)
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(-12, 12, (height, width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)), labels


def write_pairs(root: Path, images: int) -> Path:
    """images/{train,val}, labels/{train,val} and classes.txt."""
    for split in ("train", "val"):
        rng = Random(split)
        for number in range(images):
            image, labels = scene(rng)
            for folder, file, suffix in (("images", image, "png"), ("labels", labels, "png")):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                file.save(root / folder / split / f"{number:03d}.{suffix}")
    (root / "classes.txt").write_text("ground\ndisc\nbar\n")
    return root


def write_ade(root: Path, images: int) -> Path:
    """A tree shaped as ADEChallengeData2016: ids from 1, 0 where ignored."""
    for split in ("training", "validation"):
        rng = Random(split)
        for number in range(images):
            image, labels = scene(rng)
            ids = np.asarray(labels)
            ids = np.where(ids == 255, 0, ids + 1).astype(np.uint8)
            for folder in ("images", "annotations"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            name = f"ADE_{split[:5]}_{number:08d}"
            image.save(root / "images" / split / f"{name}.jpg", quality=95)
            Image.fromarray(ids).save(root / "annotations" / split / f"{name}.png")
    return root


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes `images` pairs of each split and returns their directory."""
    return lambda images=4: write_pairs(tmp_path / "pairs", images)


@pytest.fixture
def make_ade(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an ADE-shaped tree, `images` of each split, and returns its directory."""
    return lambda images=4: write_ade(tmp_path / "ade", images)
