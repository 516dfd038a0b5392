"""The picture of detections: it is written, shows both sides, and does with nothing found."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_masks
from PIL import Image

from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.draw import Drawn, draw_detections, draw_objects


def test_names_are_drawn_as_they_are(tmp_path) -> None:
    """Dollars are no mathematics."""
    objects = [Drawn(None, (5, 10, 20, 20), 0, "$5 ^{ $10")]
    draw_objects(np.zeros((48, 64, 3), dtype=np.uint8), objects, tmp_path / "image.png")
    assert Image.open(tmp_path / "image.png").size == (64, 48)


def test_detections_beside_the_truth(make_coco, tmp_path) -> None:
    split = read_split(make_coco(5), "val")
    mask = np.zeros((48, 64), dtype=np.uint8, order="F")
    mask[10:30, 5:25] = 1
    region = {"size": [48, 64], "counts": coco_masks.encode(mask)["counts"].decode()}
    result = {"image_id": 1, "category_id": 9, "bbox": [5, 10, 20, 20], "score": 0.8, "segmentation": region}
    for name, results in (
        ("none", []),
        ("one", [result]),
        ("both", [result, {**result, "bbox": [0, 0, 9, 9], "score": 0.3}]),
    ):
        draw_detections(split, results, tmp_path / f"{name}.png", 2)
    none, one, both = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("none", "one", "both"))
    assert none.shape[1] > 600
    assert (one == both).all()  # less than half as sure as the best
    changed = [part.any() for part in np.array_split((none != one).any(-1)[30:], 4, axis=1)]
    assert changed == [False, True, False, False]  # truth and detections of the first image, then of the second
    assert [file.name for file in tmp_path.glob("*.tmp")] == []
