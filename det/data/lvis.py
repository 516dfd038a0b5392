"""LVIS v1: its file layout, and the fields its annotations have beyond COCO's; repeats.py repeats rare images.

    DIR/annotations/lvis_v1_train.json, lvis_v1_val.json (or both in DIR itself), beside COCO's train2017/ and val2017/

LVIS names an image by its COCO URL; `as_coco` uses the last two parts as file name (train2017/000...jpg, because LVIS's
validation images come from both COCO folders). An image lists categories that are certainly not on it, and categories
that are not exhaustively annotated; LVIS's metrics use both lists (`det.evaluation.evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mimbench.engine.data.datasets import CocoFiles, Finding, Split, coco_root

ABOUT_IMAGES = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")  # rare: in 10 images or fewer; common: in 100 or fewer; frequent


def lvis_files(directory: Path, split: Split) -> CocoFiles:
    """Return the annotation file and the folder that image names are relative to, without opening them."""
    root, name = coco_root(directory), f"lvis_v1_{split}.json"
    inside = root / "annotations" / name
    return CocoFiles(inside if inside.exists() or not (root / name).exists() else root / name, root)


def as_coco(content: Any) -> Any:
    """Return `content` of an annotation file with file names from COCO's URLs; unchanged if it is invalid."""
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return content
    images = [_named(image) if isinstance(image, dict) else image for image in content["images"]]
    return {**content, "images": images}


def _named(image: Mapping[str, Any]) -> dict[str, Any]:
    if "file_name" in image or not isinstance(image.get("coco_url"), str):
        return dict(image)
    return {**image, "file_name": "/".join(image["coco_url"].split("/")[-2:])}


def lvis_findings(content: Mapping[str, Any], files: CocoFiles) -> Iterator[Finding]:
    """Yield errors for fields that LVIS's metrics need and that a valid COCO file may lack."""
    file = str(files.annotations)
    for image in content["images"]:
        for key in ABOUT_IMAGES:
            if not isinstance(image.get(key), list):
                what = f"image {image['id']} has no list of {key}"
                yield Finding("error", file, what, "LVIS needs it for every image; benchmark=coco does not")
    for category in content["categories"]:
        if category.get("frequency") not in FREQUENCIES:
            what = f"category {category['id']} has frequency {category.get('frequency')!r}"
            yield Finding("error", file, what, f"use one of {', '.join(FREQUENCIES)}; benchmark=coco needs none")
