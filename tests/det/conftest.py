"""A small COCO data set of coloured shapes, written anew for each test that asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
import pytest
from PIL import Image, ImageDraw

SIDE = (48, 64)  # height, width
CATEGORIES = [{"id": 9, "name": "disc"}, {"id": 4, "name": "bar"}]  # a gap, and not in order


def draw_shapes(rng: Random, image_id: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """An image with one disc (an RLE region) and one bar (a polygon), which do not touch."""
    image = Image.new("RGB", SIDE[::-1], (rng.randrange(60), 40, 40))
    pen = ImageDraw.Draw(image)
    x, y, r = rng.uniform(12, 20), rng.uniform(14, 34), rng.uniform(8, 11)
    disc = Image.new("L", SIDE[::-1])
    ImageDraw.Draw(disc).ellipse((x - r, y - r, x + r, y + r), fill=1)
    pen.ellipse((x - r, y - r, x + r, y + r), fill=(230, 200, 60))
    region = coco_masks.encode(np.asfortranarray(np.asarray(disc)))
    x0, y0, w, h = rng.uniform(36, 40), rng.uniform(3, 10), rng.uniform(14, 20), rng.uniform(20, 32)
    bar = [x0, y0, x0 + w, y0, x0 + w, y0 + h, x0, y0 + h]
    pen.rectangle((bar[0], bar[1], bar[4], bar[5]), fill=(60, 120, 240))
    text = {"size": list(SIDE), "counts": region["counts"].decode()}
    return image, [
        {"image_id": image_id, "category_id": 9, "iscrowd": 0, "segmentation": text,
         "bbox": coco_masks.toBbox(region).tolist(), "area": float(coco_masks.area(region))},
        {"image_id": image_id, "category_id": 4, "iscrowd": 0, "segmentation": [bar],
         "bbox": [x0, y0, w, h], "area": w * h},
    ]  # fmt: skip


def write_coco(root: Path, images: int) -> Path:
    """Write the data set, `images` of each split, to `root`."""
    for split in ("train", "val"):
        rng, content = Random(split), {"images": [], "annotations": [], "categories": CATEGORIES}
        (root / f"{split}2017").mkdir(parents=True)
        for number in range(images, 0, -1):  # ids fall: the reader must sort
            image, annotations = draw_shapes(rng, number)
            image.save(root / f"{split}2017" / f"{number}.png")
            content["images"].append({"id": number, "file_name": f"{number}.png", "height": SIDE[0], "width": SIDE[1]})
            content["annotations"] += annotations
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number + 1
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the data set, `images` of each split, and returns its directory."""
    return lambda images=4: write_coco(tmp_path / "shapes", images)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """A function that lets another change the content of an annotation file."""

    def change(file: Path, how: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(file.read_text())
        how(content)
        file.write_text(json.dumps(content))

    return change
