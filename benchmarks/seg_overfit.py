"""Whether a segmenter can learn real images by heart: UperNet on a ViT, from scratch, on eight images of COCO.

    python benchmarks/seg_overfit.py COCO_DIR [--steps 300] [--image 128] [--json]
    python benchmarks/seg_overfit.py COCO_DIR --tree DIR       # only write a data set in ADE20K's layout

The instances of each image are painted into a label map, the larger ones first; the rest is background, and a crowd
region is ignored. Takes the first eight images of train2017 that hold two to nine objects, all of 5,000 square pixels
or more, and no crowd region; trains on them at one scale without flips or distortion, small (128 wide, 4 deep, 128
pixels, patches of 16), and evaluates on the same images at their own sizes. mIoU must come out above 80. Ends with
status 1 if not. Also prints the mIoU of a crop of each image with batch norm's running statistics and with the batch's
own: a gap is a fault of batch norm. Takes about two minutes of one core.

`--tree` paints all images of both splits: images/{training,validation}, annotations/{training,validation}, where the
80 categories have the ids 1 to 80 and the background is ADE20K's 0, which is ignored.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from mimbench.backbones.config import ViT
from mimbench.engine.data.datasets import Split, coco_files
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.seg.config import Augment, Backbone, Heads, Inference, UPerNetConfig
from mimbench.seg.data.batches import TrainingCrops, training_batch
from mimbench.seg.data.split import open_split
from mimbench.seg.evaluation.metric import Confusion
from mimbench.seg.model.build import build_segmenter
from mimbench.seg.model.enlarge import enlarged
from mimbench.seg.model.segmenter import prepared
from mimbench.seg.run import run
from mimbench.seg.upernet import SEGMENTER

IMAGES, SMALLEST, WANTED = 8, 5000, 80.0
IGNORED = 255
FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


def label_map(
    image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], ids: Mapping[int, int]
) -> Image.Image:
    """Return the label map of an image: `ids` of the categories of its instances, 0 elsewhere, 255 in crowd regions."""
    height, width = image["height"], image["width"]
    labels: NDArray[np.uint8] = np.zeros((height, width), dtype=np.uint8)
    for one in sorted(annotations, key=lambda one: (not one["iscrowd"], -one["area"])):
        shape = one["segmentation"]
        if isinstance(shape, list):
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, height, width)
        labels[coco_mask.decode(shape).astype(bool)] = IGNORED if one["iscrowd"] else ids[one["category_id"]]
    return Image.fromarray(labels)


def instances(source: Path, split: Split) -> tuple[Path, dict[str, Any], dict[int, list[dict[str, Any]]]]:
    """Return a split's folder of images, the content of its annotation file, and the annotations of each image."""
    files = coco_files(source, split)
    content: dict[str, Any] = json.loads(files.annotations.read_text())
    of_image = defaultdict(list)
    for one in content["annotations"]:
        of_image[one["image_id"]].append(one)
    return files.images, content, of_image


def ade_tree(source: Path, root: Path) -> Path:
    """Write all images of a COCO data set with label maps in ADE20K's layout, and return `root`."""
    for split, folder in FOLDERS.items():
        images, content, of_image = instances(source, split)
        ids = {one["id"]: number for number, one in enumerate(sorted(content["categories"], key=lambda c: c["id"]), 1)}
        for above in ("images", "annotations"):
            (root / above / folder).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(content["images"], 1):
            name = f"ADE_{split}_{number:08d}"
            link = root / "images" / folder / f"{name}.jpg"
            link.unlink(missing_ok=True)
            link.symlink_to((images / image["file_name"]).resolve())
            painted = np.asarray(label_map(image, of_image[image["id"]], ids))
            ours = np.where(painted == IGNORED, 0, painted).astype(np.uint8)  # ADE20K has no 255
            Image.fromarray(ours).save(root / "annotations" / folder / f"{name}.png")
    return root


def eight(source: Path, root: Path) -> Path:
    """Write the eight images, the same for training and validation, with background as a class; return `root`."""
    folder, content, of_image = instances(source, "train")
    fit = [
        image
        for image in content["images"]
        if 2 <= len(of_image[image["id"]]) <= 9
        and all(not one["iscrowd"] and one["area"] >= SMALLEST for one in of_image[image["id"]])
    ][:IMAGES]
    shown = sorted({one["category_id"] for image in fit for one in of_image[image["id"]]})
    names = {one["id"]: one["name"] for one in content["categories"]}
    ids = {category: number for number, category in enumerate(shown, 1)}
    for split in FOLDERS:
        for above in ("images", "labels"):
            (root / above / split).mkdir(parents=True)
        for image in fit:
            (root / "images" / split / image["file_name"]).symlink_to((folder / image["file_name"]).resolve())
            stem = Path(image["file_name"]).stem
            label_map(image, of_image[image["id"]], ids).save(root / "labels" / split / f"{stem}.png")
    (root / "classes.txt").write_text(
        "".join(f"{name}\n" for name in ("background", *(names[category] for category in shown)))
    )
    return root


def config_of(data: Path, steps: int, image: int) -> UPerNetConfig:
    """A small segmenter, without augmentation but for the crop, dropout, decay and layer decay.

    The learning rate decides: 300 steps at 1e-3, with patches of 8, end at 64.9 mIoU, here at 92.4 (NOTES.md).
    """
    return UPerNetConfig(
        data=str(data),
        encoder=ViT(128, 4, 4, image=image),
        backbone=Backbone(drop_path=0.0),
        heads=Heads(channels=64, aux_channels=64, dropout=0.0),
        augment=Augment(long=1024, smallest=1.0, largest=1.0, cat_max_ratio=1.0, flip=0.0, photometric=False),
        inference=Inference(long=1024),
        image=image,
        steps=steps,
        batch=IMAGES,
        lr=3e-3,
        warmup=30,
        layer_decay=1.0,
        weight_decay=0.0,
        shown=0,
        compute=Compute(precision="fp32", workers=0, log_every=30, save_every=steps),
    )


@torch.no_grad()
def by_mode(config: UPerNetConfig, segmenter: Path) -> dict[str, float]:
    """Return mIoU on a crop of each image, with running statistics ("eval") and the batch's own ("train")."""
    split = open_split(config.data, "train")
    model = build_segmenter(replace(config, checkpoint=str(segmenter)), len(split.classes)).model
    np.random.seed(0)
    crops = TrainingCrops(split, config.augment, config.image)
    batch = training_batch([crops[index] for index in range(len(split))], config.image)
    images = prepared(batch["images"], batch["sizes"], model.mean, model.std)
    found = {}
    for mode in ("eval", "train"):  # training changes the running statistics, so it comes last
        confusion = Confusion(len(split.classes))
        predicted = enlarged(model.train(mode == "train").logits(images), images.shape[2:]).argmax(1)
        confusion.add(predicted, batch["labels"])
        found[mode] = confusion.metrics()["miou"]
    return found


def losses(run: RunDir) -> dict[int, float]:
    """Return the training loss at the steps that a run logged."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def main() -> int:
    """Train, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="COCO_DIR")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--image", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="only write a data set in ADE20K's layout there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.tree is not None:
        print(ade_tree(options.data, options.tree))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        config = config_of(eight(options.data, Path(directory) / "eight"), options.steps, options.image)
        about = {"recipe": "seg/overfit", "stage": "seg", "identity": "0"}
        rundir = RunDir.create(Path(directory) / "run", to_text(config), about)
        begun = time.perf_counter()
        outcome = run(config, rundir)
        taken = time.perf_counter() - begun
        modes = by_mode(config, rundir.path / SEGMENTER)
        curve = losses(rundir)
    metrics = outcome.metrics | {f"miou_of_crops_{mode}": value for mode, value in modes.items()}
    if options.json:
        print(json.dumps(metrics))
    else:
        print("loss at steps " + ", ".join(f"{step}: {value:.2f}" for step, value in curve.items()))
        took = f"{options.steps} steps and the evaluation in {taken:.0f} s"
        print(f"mIoU {metrics['miou']:.1f}, aAcc {metrics['aacc']:.1f}, {took}")
        print(f"of crops: mIoU {modes['eval']:.1f} with running statistics, {modes['train']:.1f} with the batch's own")
    return int(metrics["miou"] <= WANTED)


if __name__ == "__main__":
    sys.exit(main())
