"""A small LVIS-like data set and results for it, from formulas: what golden_lvis.py and test_lvis.py both look at."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
from PIL import Image

HEIGHT, WIDTH, IMAGES = 120, 160, 14
FREQUENCIES = "rrccff"  # of categories 3, 5, 7 ...


def annotations() -> dict[str, Any]:
    """In LVIS's form: polygons, images by address, and which categories were looked for on each."""
    rng = Random(5)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    categories = [
        {"id": 3 + 2 * place, "name": f"kind {place}", "frequency": frequency, "image_count": 1 + place}
        for place, frequency in enumerate(FREQUENCIES)
    ]
    ids = [category["id"] for category in categories]
    for image in range(1, IMAGES + 1):
        shown = rng.sample(ids, rng.randint(1, 4))
        others = [kind for kind in ids if kind not in shown]
        images.append({
            "id": image, "height": HEIGHT, "width": WIDTH,
            "coco_url": f"http://images.cocodataset.org/val2017/{image:012}.jpg",
            "neg_category_ids": rng.sample(others, min(2, len(others))),
            "not_exhaustive_category_ids": rng.sample(shown, rng.randint(0, 1)),
        })  # fmt: skip
        for kind in shown:
            for _ in range(rng.randint(1, 4)):
                w, h = rng.choice([(12, 9), (40, 33), (110, 98)])
                x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
                polygon = [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]
                objects.append({
                    "id": len(objects) + 1, "image_id": image, "category_id": kind,
                    "bbox": [x, y, w, h], "area": w * h / 2, "segmentation": [polygon],
                })  # fmt: skip
    return {"images": images, "annotations": objects, "categories": categories}


def write_lvis(root: Path) -> Path:
    """Write the data set to `root`, the same images for both splits."""
    content = annotations()
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (root / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(content))
    for image in content["images"]:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "val2017" / image["coco_url"].rpartition("/")[2])
    return root


def results() -> list[dict[str, Any]]:
    """Objects moved a little, some of the wrong kind, and more of nothing than may count on one image."""
    rng, content = Random(6), annotations()
    found = []
    for annotation in content["annotations"] * 3:
        x, y, w, h = annotation["bbox"]
        box = [x + rng.gauss(0, w / 12), y + rng.gauss(0, h / 12), w * rng.uniform(0.8, 1.2), h * rng.uniform(0.8, 1.2)]
        kind = annotation["category_id"] if rng.random() < 0.8 else rng.choice([3, 5, 7, 9, 11, 13])
        found.append(_result(annotation["image_id"], kind, box, rng.random()))
    for _ in range(330):
        box = [rng.uniform(0, 100), rng.uniform(0, 80), rng.uniform(5, 60), rng.uniform(5, 40)]
        found.append(_result(1, rng.choice([3, 5, 7, 9, 11, 13]), box, 0.6 * rng.random()))
    return found


def _result(image: int, kind: int, box: list[float], score: float) -> dict[str, Any]:
    bitmap = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    x, y, w, h = (round(value) for value in box)
    bitmap[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    region = coco_masks.encode(np.asfortranarray(bitmap))
    text = {"size": [HEIGHT, WIDTH], "counts": region["counts"].decode()}
    return {"image_id": image, "category_id": kind, "bbox": box, "score": score, "segmentation": text}
