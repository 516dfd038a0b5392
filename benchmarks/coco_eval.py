"""From detections to COCO's numbers, against pycocotools, and masks to RLE, against detectron2's way (B17, B18).

    python benchmarks/coco_eval.py [--images 500] [--original PATH] [--repeats 2] [--only B17] [--json]

    B17       100 masks of 28 x 28 on their boxes to RLE of a 480 x 640 image. Peer: paste each into a whole image and
              encode that: detectron2's paste_masks_in_image where it is importable (--original names a checkout, or
              PYTHONPATH), else the same written out, and its instances_to_coco_json. Strings are identical.
    B18 box   evaluation as it runs during training (hotcoco), from the arrays in which detections are kept to numbers,
    B18 mask  against pycocotools' loadRes, evaluate, accumulate and summarize from a list of results. All twelve
              numbers are equal to every digit.

Ground truth and detections are made up in COCO's proportions: 7.2 objects of 80 categories an image, of sizes as in
val2017, 100 detections an image, some of them moved objects, most of them nothing. Sides take turns; least time counts.
pycocotools evaluates --repeats + 2 times (to warm up, and for its memory), which is nearly all of the time: a tenth of
val2017, twice, so that the default ends within 8 minutes. val2017 itself is --images 5000 (use --repeats 1). B17 is
repeated five times. Ends with status 1 if a ratio is below its floor.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
import torch
from measure import Measured, Target, peak_beyond, take_turns, total_failed
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimbench.det.evaluation.evaluate import PRECISION, RECALL, CocoMetrics
from mimbench.det.evaluation.results import Results
from mimbench.det.evaluation.rle import encode_masks
from mimbench.det.model.masks import paste

HEIGHT, WIDTH, CATEGORIES, OBJECTS, DETECTIONS = 480, 640, 80, 7.2, 100
TARGETS = {"B17": Target(3.5, 8.0, 15.0), "B18 box": Target(20.0, 50.0), "B18 mask": Target(10.0, 30.0)}

Result = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------- data


def sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Widths and heights (N, 2): areas log-normal, a third small and a quarter large, as COCO's are."""
    side = np.exp(rng.normal(math.log(62), 1.0, count)).clip(4, 400)
    shape = np.exp(rng.normal(0, 0.4, count))
    return np.stack([(side * shape).clip(3, WIDTH - 1), (side / shape).clip(3, HEIGHT - 1)], axis=1)


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (N, 4) x y w h anywhere in the image."""
    wh = sizes(rng, count)
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - wh), wh], axis=1)


def outline(box: list[float]) -> list[float]:
    """An octagon in the box."""
    x, y, w, h = box
    turns = np.arange(8) * math.pi / 4
    points = np.stack([x + w / 2 + w / 2 * np.cos(turns), y + h / 2 + h / 2 * np.sin(turns)], axis=1)
    return points.clip(0, [WIDTH, HEIGHT]).ravel().tolist()


def regions(found: np.ndarray) -> list[Result]:
    """RLE of octagons in boxes (N, 4)."""
    encoded = coco_masks.frPyObjects([outline(box) for box in found.tolist()], HEIGHT, WIDTH)
    return [{"size": region["size"], "counts": region["counts"].decode()} for region in encoded]


def make_up(images: int) -> tuple[dict[str, Any], list[Result]]:
    """Annotations, and results for them."""
    rng = np.random.default_rng(0)
    annotations: list[Result] = []
    results: list[Result] = []
    for image in range(1, images + 1):
        truth = boxes(rng, rng.poisson(OBJECTS))
        kinds = rng.integers(1, CATEGORIES + 1, len(truth))
        for box, kind in zip(truth.tolist(), kinds.tolist(), strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box,
                "area": 0.7 * box[2] * box[3], "iscrowd": int(rng.random() < 0.012), "segmentation": [outline(box)],
            })  # fmt: skip
            if annotations[-1]["iscrowd"]:
                annotations[-1]["segmentation"] = {
                    "size": [HEIGHT, WIDTH],
                    "counts": regions(np.array([box]))[0]["counts"],
                }
        moved = truth.repeat(3, axis=0)[:DETECTIONS]
        moved = np.abs(moved * rng.normal(1, 0.08, moved.shape))
        found = np.concatenate([moved, boxes(rng, DETECTIONS - len(moved))])
        labels = np.concatenate(
            [kinds.repeat(3)[: len(moved)], rng.integers(1, CATEGORIES + 1, DETECTIONS - len(moved))]
        )
        scores = np.concatenate([rng.beta(4, 2, len(moved)), rng.beta(1, 6, DETECTIONS - len(moved))])
        results += [
            {"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": region}
            for box, label, score, region in zip(
                found.tolist(), labels.tolist(), scores.tolist(), regions(found), strict=True
            )
        ]
    listed = [
        {"id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH} for image in range(1, images + 1)
    ]
    categories = [{"id": kind, "name": str(kind)} for kind in range(1, CATEGORIES + 1)]
    return {"images": listed, "annotations": annotations, "categories": categories}, results


# ----------------------------------------------------------------------------------------------------------------- B18


class Pycocotools:
    """The reference, with its ground truth read before."""

    def __init__(self, file: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth = COCO(str(file))

    def __call__(self, results: list[Result], kind: str) -> dict[str, float]:
        """From results to the twelve numbers."""
        left_out = {"bbox": "segmentation", "segm": "bbox"}[kind]
        copies = [{key: value for key, value in result.items() if key != left_out} for result in results]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, self.truth.loadRes(copies), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {
            name: 100 * value for name, value in zip(PRECISION + RECALL, evaluation.stats, strict=True) if value >= 0
        }


@dataclass
class Last:
    """Does `work` and keeps what it found last: the reference takes minutes, and is asked no more than it must."""

    work: Callable[[], dict[str, float]]
    found: dict[str, float] = field(default_factory=dict)

    def __call__(self) -> None:
        """Once more."""
        self.found = self.work()


def b18(images: int, repeats: int) -> Iterator[Measured]:
    """Boxes, then masks."""
    content, results = make_up(images)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "truth.json"
        file.write_text(json.dumps(content))
        peer, arrays = Pycocotools(file), Results.of(results)
        sides_of, scores = {}, {}
        for prefix, kind in (("box", "bbox"), ("mask", "segm")):
            score = scores[prefix] = CocoMetrics(file)
            score.kinds = {prefix: kind}
            sides_of[prefix] = Last(partial(score, arrays, fast=True)), Last(partial(peer, results, kind))
        # first of all, because hotcoco works in no process that is forked after its first use
        peaks_of = {prefix: [peak_beyond(side) for side in sides] for prefix, sides in sides_of.items()}
        for prefix, sides in sides_of.items():
            ours, theirs_s = take_turns(*sides, repeats)
            fast, theirs = (side.found for side in sides)
            expected = {f"{prefix}_{name}": value for name, value in theirs.items()}
            assert fast == {name: expected[name] for name in fast}, f"{prefix}: numbers differ"
            assert scores[prefix](arrays) == expected
            name, peaks = f"B18 {prefix}", peaks_of[prefix]
            note = (
                f"{images} images, {len(content['annotations'])} objects, {len(results)} detections, equal; "
                f"peak memory {peaks[0]:.0f} and {peaks[1]:.0f} MiB more"
            )
            yield Measured(name, "s", ours, theirs_s, TARGETS[name], note)


# ----------------------------------------------------------------------------------------------------------------- B17


def b17(repeats: int) -> Measured:
    """100 masks to strings."""
    rng = np.random.default_rng(1)
    xywh = boxes(rng, DETECTIONS)
    corners = torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)).float()
    coarse = torch.from_numpy(rng.random((DETECTIONS, 1, 5, 5))).float()
    bumps = torch.nn.functional.interpolate(coarse, size=28, mode="bicubic").clamp(0, 1)[:, 0]

    real = importlib.util.find_spec("detectron2") is not None
    if real:
        from detectron2.layers.mask_ops import paste_masks_in_image as paste_all
    else:
        paste_all = paste_whole

    def encoded() -> list[Result]:
        return encode_masks(bumps, corners, (HEIGHT, WIDTH))

    def theirs() -> list[Result]:
        pasted = paste_all(bumps, corners, (HEIGHT, WIDTH)).numpy()
        regions = [coco_masks.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in pasted]
        return [{"size": region["size"], "counts": region["counts"].decode()} for region in regions]

    plain = [
        coco_masks.encode(np.asfortranarray(mask))["counts"].decode()
        for mask in paste(bumps, corners, (HEIGHT, WIDTH)).numpy().astype(np.uint8)
    ]
    ours = encoded()
    assert [region["counts"] for region in ours] == plain
    same = sum(one["counts"] == other["counts"] for one, other in zip(ours, theirs(), strict=True))
    assert same == DETECTIONS, f"{DETECTIONS - same} strings differ"
    peaks = [peak_beyond(side) for side in (encoded, theirs)]
    peer = "detectron2's" if real else "written out"
    note = (
        f"{same} of {DETECTIONS} strings identical, peer {peer}; peak memory {peaks[0]:.0f} and {peaks[1]:.0f} MiB more"
    )
    return Measured("B17", "s", *take_turns(encoded, theirs, repeats), TARGETS["B17"], note)


def paste_whole(masks_RMM: torch.Tensor, boxes_R4: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Each mask on its box, sampled one by one, as detectron2's paste_masks_in_image does on a CPU: bool (R, h, w)."""
    height, width = size
    image_RHW = torch.zeros(len(masks_RMM), height, width, dtype=torch.bool)
    for image, mask, (x0, y0, x1, y1) in zip(image_RHW, masks_RMM, boxes_R4, strict=True):
        left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
        right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
        y = (torch.arange(top, bottom, dtype=torch.float32) + 0.5 - y0) / (y1 - y0) * 2 - 1
        x = (torch.arange(left, right, dtype=torch.float32) + 0.5 - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        values = torch.nn.functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        image[top:bottom, left:right] = values >= 0.5
    return image_RHW


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=2, help="of B18")
    parser.add_argument("--original", type=Path, help="a checkout of github.com/facebookresearch/detectron2")
    parser.add_argument("--only", choices=["B17", "B18"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.original is not None:
        sys.path.append(str(options.original))
    torch.set_num_threads(1)
    results = []
    for name, measure in (
        ("B17", lambda: [b17(5)]),
        ("B18", lambda: b18(options.images, options.repeats)),
    ):
        if options.only in (None, name):
            for result in measure():
                results.append(result)
                if not options.json:
                    print(result.line(), flush=True)
    if options.json:
        print(json.dumps([result.row() for result in results], indent=2))
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())
