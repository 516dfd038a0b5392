"""Training images for detection, against detectron2's order of work (B13), and what annotations cost in memory.

    python benchmarks/det_input.py [COCO_DIR] [--original PATH] [--repeats 5] [--images 64] [--json]
    python benchmarks/det_input.py --memory [--annotated 118000] [--workers 8]

    B13       decode, flip, scale, crop, and the objects with their boxes, one core, images a second. Peer: detectron2's
              DatasetMapper where it is importable (--original names a checkout, or PYTHONPATH), else its order of work
              written out: flip and resize the whole image with Pillow, then crop; polygon by polygon. Same sizes; boxes
              differ by .01 px and pixels by 1 of 255 on average at most.
    --memory  private memory (USS) of each loading process once it has read the objects of 4,000 images of a made-up
              data set as large as COCO's train2017, where processes are forked; and of processes that have detectron2's
              unserialised form, a list of dictionaries, of a tenth of the images. Fails if ours have more than 100 MiB
              beyond what they have on a data set of ten images.

COCO_DIR is laid out as COCO 2017 is; without it images of 375 x 500 pixels are made up. Sides take turns on each
image, and the least processor time of each counts. Ends with status 1 if a ratio is below its floor.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import shapely
import torch
from coco_eval import boxes, outline
from image_input import make_up
from measure import Measured, Target, peak_beyond, total_failed
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimbench.det.config import Augment
from mimbench.det.data.augment import Jitter, draw_jitter, jittered, render
from mimbench.det.data.batches import placed_objects
from mimbench.det.data.coco import CocoSplit, arranged, read_split
from mimbench.engine.data.datasets import CocoFiles

SIDE, NEAR_PIXELS, NEAR_BOXES = 1024, 1.0, 0.01
TARGET = Target(3.0, 4.3, 6.4)
SHARED_LIMIT = 100 * 2**20
READ = 4000


# ----------------------------------------------------------------------------------------------------------------- B13


def detectron2_order(path: Path, polygons: list[list[np.ndarray]], jitter: Jitter) -> tuple[Tensor, np.ndarray]:
    """Image (3, h, w) and boxes (N, 4) as detectron2's DatasetMapper makes them, step by step."""
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    if jitter.flip:
        image = np.ascontiguousarray(np.flip(image, axis=1))
    factor = min(SIDE * jitter.scale / height, SIDE * jitter.scale / width)
    new_height, new_width = (max(round(length * factor), 1) for length in (height, width))
    image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    top, left = (round(max(length - SIDE, 0) * jitter.fraction) for length in (new_height, new_width))
    image = image[top : top + SIDE, left : left + SIDE]
    window = shapely.geometry.box(left, top, left + SIDE, top + SIDE)
    found = []
    for instance in polygons:
        corners = [
            part for polygon in instance
            for part in _cut(polygon, jitter.flip, width, (new_width / width, new_height / height), window, (left, top))
        ]  # fmt: skip
        points = np.concatenate(corners) if corners else np.zeros((1, 2))
        found.append([*points.min(0), *points.max(0)])
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))), np.array(found).reshape(-1, 4)


def _cut(
    polygon: np.ndarray, flip: bool, width: int, scale: tuple[float, float], window: Any, offset: tuple[int, int]
) -> list[np.ndarray]:
    """What is left of one polygon inside the window, in its coordinates."""
    points = polygon.reshape(-1, 2).copy()
    if flip:
        points[:, 0] = width - points[:, 0]
    shape = shapely.geometry.Polygon(points * scale).buffer(0.0).intersection(window)
    parts = getattr(shape, "geoms", [shape])
    kept = [part for part in parts if isinstance(part, shapely.geometry.Polygon) and not part.is_empty]
    return [np.asarray(part.exterior.coords)[:-1] - offset for part in kept]


class Mapper:
    """detectron2's own DatasetMapper, given the draws."""

    def __init__(self, split: CocoSplit, index: int, jitter: Jitter) -> None:
        from detectron2.data import DatasetMapper
        from detectron2.data import transforms as T
        from detectron2.structures import BoxMode

        scale, square = jitter.scale, (SIDE, SIDE)
        self.fraction = jitter.fraction
        self.mapper = DatasetMapper(
            is_train=True,
            augmentations=[
                T.RandomFlip(prob=float(jitter.flip)), T.ResizeScale(scale, scale, SIDE, SIDE),
                T.FixedSizeCrop(square, pad=False),
            ],
            image_format="RGB", use_instance_mask=True, recompute_boxes=True,
        )  # fmt: skip
        labels, shapes = split.objects(index)
        height, width = split.size(index)
        annotations = [
            {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": label,
             "segmentation": [polygon.tolist() for polygon in shape]}
            for label, shape in zip(labels.tolist(), shapes, strict=True)
        ]  # fmt: skip
        self.record = {"file_name": str(split.paths[index]), "height": height, "width": width, "image_id": index,
                       "annotations": annotations}  # fmt: skip

    def __call__(self) -> tuple[Tensor, np.ndarray]:
        """Image and boxes."""
        with mock.patch("numpy.random.uniform", self._drawn):
            found = self.mapper(self.record)
        return found["image"], found["instances"].gt_boxes.tensor.numpy()

    def _drawn(self, low: float = 0.0, high: float = 1.0, _size: object = None) -> float:
        return low + self.fraction * (high - low)


def b13(split: CocoSplit, images: int, repeats: int) -> Measured:
    """Both orders on the same images with the same draws."""
    random.seed(0)
    drawn = [draw_jitter(Augment()) for _ in range(images)]
    places = [
        int(index) for index in split.with_objects()
        if all(isinstance(shape, list) for shape in split.objects(int(index))[1])
    ][:images]  # fmt: skip

    def ours(number: int) -> tuple[Tensor, Any]:
        index = places[number]
        placement = jittered(split.size(index), drawn[number], SIDE)
        return render(split.read_image(index), placement), placed_objects(split, index, placement)

    real = importlib.util.find_spec("detectron2") is not None
    mappers = [Mapper(split, *drawing) for drawing in zip(places, drawn, strict=False)] if real else []

    def theirs(number: int) -> tuple[Tensor, np.ndarray]:
        if real:
            return mappers[number]()
        index = places[number]
        return detectron2_order(split.paths[index], split.objects(index)[1], drawn[number])  # type: ignore[arg-type]

    peaks = [peak_beyond(lambda side=side: [side(number) for number in range(len(places))]) for side in (ours, theirs)]

    apart = [_apart(ours(number), theirs(number)) for number in range(len(places))]
    assert float(np.mean(apart)) <= NEAR_PIXELS, f"pixels differ by {np.mean(apart):.2f} of 255 on average"
    best = {"ours": [math.inf] * len(places), "theirs": [math.inf] * len(places)}
    sides: dict[str, Callable[[int], object]] = {"ours": ours, "theirs": theirs}
    for _ in range(repeats):
        for number in range(len(places)):
            for side, work in sides.items():
                begun = time.process_time()
                work(number)
                best[side][number] = min(best[side][number], time.process_time() - begun)
    seconds = {side: sum(times) / len(places) for side, times in best.items()}
    note = (
        f"{1 / seconds['ours']:.0f} against {1 / seconds['theirs']:.0f} images/s of "
        f"{'detectron2' if real else 'its order written out'}; pixels differ by {np.mean(apart):.2f}; peak memory "
        f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB more"
    )
    return Measured("B13", "s", seconds["ours"], seconds["theirs"], TARGET, note)


def _apart(ours: tuple[Tensor, Any], theirs: tuple[Tensor, np.ndarray]) -> float:
    """Mean difference of pixels; sizes must be equal and boxes near."""
    assert ours[0].shape == theirs[0].shape, f"{ours[0].shape} is not {theirs[0].shape}"
    left = theirs[1][(theirs[1][:, 2:] - theirs[1][:, :2] > 1e-5).all(1)]
    assert len(left) == len(ours[1]["boxes"])
    assert np.abs(left - ours[1]["boxes"].numpy()).max(initial=0) <= NEAR_BOXES
    return float((ours[0].float() - theirs[0].float()).abs().mean())


def made_up(root: Path, images: int) -> CocoSplit:
    """A small data set of photograph-like images with octagons on them."""
    folder = root / "train2017"
    folder.mkdir(parents=True)
    files = make_up(folder)[:images]
    size = Image.open(files[0]).size
    return arranged(content_of([file.name for file in files], size), CocoFiles(root / "made-up", folder))


def content_of(names: list[str], size: tuple[int, int]) -> dict[str, Any]:
    """Annotations for images of (width, height) `size`: about 7.3 octagons each."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image in range(1, len(names) + 1):
        for box in boxes(rng, rng.poisson(7.3)).clip(1, min(size) / 2).tolist():
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1 + len(annotations) % 80, "bbox": box,
                "iscrowd": 0, "segmentation": [outline(box) * 3],
            })  # fmt: skip
    listed = [
        {"id": place + 1, "file_name": name, "width": size[0], "height": size[1]} for place, name in enumerate(names)
    ]
    return {
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": kind, "name": str(kind)} for kind in range(1, 81)],
    }


# -------------------------------------------------------------------------------------------------------------- memory


@dataclass
class Objects(Dataset[int]):
    """Item i touches the objects of image i, as loading does."""

    touch: Callable[[int], int]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return self.touch(index)


def private_bytes(touch: Callable[[int], int], images: int, workers: int) -> list[int]:
    """USS of each loading process after it has read its part of `READ` evenly chosen images."""
    chosen = np.linspace(0, images - 1, READ).astype(int).tolist()
    loader = DataLoader(
        Objects(touch, images), batch_size=READ // workers // 4, sampler=chosen, num_workers=workers,
        multiprocessing_context="fork", persistent_workers=True,
    )  # fmt: skip
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    return [psutil.Process(worker.pid).memory_full_info().uss for worker in iterator._workers]


def memory(annotated: int, workers: int) -> dict[str, float]:
    """MiB a process: on ten images, on `annotated`, and as a list of dictionaries of a tenth of those."""
    found = {}
    for name, images in (("ten images", 10), ("arrays", annotated)):
        split = arranged(
            content_of([f"{i:012}.jpg" for i in range(images)], (640, 480)), CocoFiles(Path("a"), Path("b"))
        )
        gc.collect()
        found[name] = (
            max(private_bytes(lambda index, split=split: len(split.objects(index)[1]), images, workers)) / 2**20
        )
        if name == "arrays":
            sizes = [v.nbytes for v in vars(split).values() if isinstance(v, np.ndarray)]
            found["arrays themselves, shared"] = (sum(sizes) + len(split.encoded)) / 2**20
        del split
    content = content_of([f"{i:012}.jpg" for i in range(annotated // 10)], (640, 480))
    of_image: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    dicts = [{**image, "annotations": of_image[image["id"]]} for image in content["images"]]
    gc.collect()

    def touch(index: int) -> int:
        return sum(len(str(annotation)) for annotation in dicts[index]["annotations"])

    found["dictionaries, a tenth"] = max(private_bytes(touch, len(dicts), workers)) / 2**20
    return found


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", metavar="COCO_DIR")
    parser.add_argument("--original", type=Path, help="a checkout of github.com/facebookresearch/detectron2")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--annotated", type=int, default=118_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.original is not None:
        sys.path.append(str(options.original))
    torch.set_num_threads(1)
    if options.memory:
        found = memory(options.annotated, options.workers)
        print(
            json.dumps(found) if options.json else "\n".join(f"{mib:>8.1f} MiB  {what}" for what, mib in found.items())
        )
        return int((found["arrays"] - found["ten images"]) * 2**20 > SHARED_LIMIT)
    with tempfile.TemporaryDirectory() as directory:
        split = read_split(options.data, "train") if options.data else made_up(Path(directory), options.images)
        result = b13(split, options.images, options.repeats)
    print(json.dumps(result.row()) if options.json else result.line())
    return total_failed([result])


if __name__ == "__main__":
    sys.exit(main())
