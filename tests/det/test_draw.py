"""The picture of detections: it is written, shows both sides, and does with nothing found."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pycocotools.mask as coco_masks
from PIL import Image

from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.draw import Drawn, draw_detections, draw_objects
from mimbench.engine.data.datasets import coco_files


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


def _strip(content) -> None:
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def test_objects_without_masks_are_drawn_as_boxes(make_coco, edit, tmp_path) -> None:
    """There is nothing to decode, and nothing is: no memory that was never written."""
    root = make_coco(2)
    edit(coco_files(root, "val").annotations, _strip)
    split = read_split(root, "val", masks=False)
    labels, shapes = split.objects(0)
    assert (len(labels), shapes, split.regions(0)) == (2, [[], []], [None, None])
    for name in ("first", "second"):
        np.random.default_rng(0).random(10**6)  # memory that is used again
        draw_detections(split, [], tmp_path / f"{name}.png", 1)
    first, second = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("first", "second"))
    assert (first == second).all()
    panels = np.array_split(first[60:], 4, axis=1)
    image = split.read_image(0).permute(1, 2, 0).numpy()
    background = np.abs(panels[0].astype(int)[..., :3] - image[0, 0].astype(int)).sum(-1) == 0
    assert background.mean() > 0.25  # untinted between the boxes


def test_regions_are_those_of_the_file(make_coco) -> None:
    split = read_split(make_coco(1), "val")
    _, (disc, bar) = split.objects(0)
    regions = split.regions(0)
    assert (coco_masks.decode(regions[0]) == disc).all()
    assert coco_masks.area(regions[1]) == coco_masks.area(coco_masks.frPyObjects([bar[0].tolist()], 48, 64)[0]) > 100


def test_photographs_are_shrunk_before_they_are_drawn(tmp_path) -> None:
    """36 Mpx with twenty masks in 700 MB at most, where full size took 4.5 GB."""
    script = tmp_path / "draw.py"
    script.write_text(PHOTOGRAPH)
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700 * 2**20
    shown = np.asarray(Image.open(tmp_path / "photo.png"))
    assert shown.shape[:2] == (2000, 2000)
    assert np.abs(shown[1500, 1500, :3].astype(int) - 120).max() <= 1  # the picture, where no object is
    assert (shown[300, 300, :3] != 120).any()


PHOTOGRAPH = """
import resource, sys
import numpy as np
import pycocotools.mask as coco_masks
from pathlib import Path
from mimbench.det.evaluation.draw import detected, draw_objects

mask = np.zeros((6000, 6000), dtype=np.uint8, order="F")
mask[:2000, :2000] = 1
region = coco_masks.encode(mask)
results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2000, 2000], "score": 0.9, "segmentation": region}] * 20
photo = np.full((6000, 6000, 3), 120, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
draw_objects(photo, detected(results, [1], ["thing"], 0.0), Path(sys.argv[1]) / "photo.png")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
