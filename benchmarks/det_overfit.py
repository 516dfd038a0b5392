"""Whether a detector can learn real images by heart: Mask R-CNN on ViTDet, from scratch, on eight images of COCO.

    python benchmarks/det_overfit.py COCO_DIR [--steps 300] [--json]

Takes the first eight images of train2017 that hold two to nine objects, all of 5,000 square pixels or more, and no
crowd region; trains on them without jitter, small (128 wide, 4 deep, 256 pixels), and evaluates on the same images. Box
AP must come out above 90 (98.8 did, 79.0 for masks). About 8 minutes of one CPU core. Ends with status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from mimbench.backbones.config import ViT
from mimbench.det.config import Augment, Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.run import run
from mimbench.engine.data.datasets import coco_files
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir

IMAGES, SMALLEST, WANTED = 8, 5000, 90.0


def eight(source: Path, root: Path) -> Path:
    """A data set of the eight images, the same for training and validation."""
    files = coco_files(source, "train")
    content: dict[str, Any] = json.loads(files.annotations.read_text())
    objects = Counter(one["image_id"] for one in content["annotations"])
    bad = {one["image_id"] for one in content["annotations"] if one["iscrowd"] or one["area"] < SMALLEST}
    images = [one for one in content["images"] if one["id"] not in bad and 2 <= objects[one["id"]] <= 9][:IMAGES]
    ids = {image["id"] for image in images}
    annotations = [one for one in content["annotations"] if one["image_id"] in ids]
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        for image in images:
            (root / f"{split}2017" / image["file_name"]).symlink_to((files.images / image["file_name"]).resolve())
        text = json.dumps({**content, "images": images, "annotations": annotations})
        (root / "annotations" / f"instances_{split}2017.json").write_text(text)
    return root


def config_of(data: Path, steps: int) -> MaskRCNNConfig:
    """A small detector, without jitter, decay and layer decay."""
    return MaskRCNNConfig(
        data=str(data),
        encoder=ViT(128, 4, 4, patch=16, image=224),
        vitdet=ViTDetConfig(window=8, drop_path=0.0, channels=48, scales=(2.0, 1.0, 0.5)),
        proposals=Proposals(
            convs=1, anchor_sizes=(24.0, 48.0, 96.0, 192.0), samples=128, before_nms=(500, 300), after_nms=(200, 100)
        ),
        heads=Heads(samples=48, convs=1, channels=48, fc=128),
        augment=Augment(flip=0.0, smallest=1.0, largest=1.0),
        image=256,
        steps=steps,
        batch=IMAGES,
        lr=1e-3,
        warmup=30.0,
        milestones=(steps * 4 // 5,),
        layer_decay=1.0,
        weight_decay=0.0,
        grad_clip=1.0,
        evaluate_every=100,
        eval_batch=4,
        shown=0,
        compute=Compute(precision="fp32", workers=0, log_every=20, save_every=steps),
    )


def main() -> int:
    """Train, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="COCO_DIR")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = config_of(eight(options.data, Path(directory) / "eight"), options.steps)
        about = {"recipe": "det/overfit", "stage": "det", "identity": "0"}
        outcome = run(config, RunDir.create(Path(directory) / "run", to_text(config), about))
    metrics = outcome.metrics
    print(json.dumps(metrics) if options.json else f"box AP {metrics['box_ap']:.1f}, mask AP {metrics['mask_ap']:.1f}")
    return int(metrics["box_ap"] <= WANTED)


if __name__ == "__main__":
    sys.exit(main())
