"""What is wrong with a COCO data set, found before a run finds it.

    mimbench data check coco PATH

Reads everything: the annotation files of both splits and every image they list, to its last byte. A run that opens a
split stops at the first error among its annotations and at a missing image, and names a broken one when it comes to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimbench.det.data.annotations import annotation_findings
from mimbench.det.data.coco import read_annotations
from mimbench.engine.data.datasets import CocoFiles, Finding, Report, UnfitError, coco_files
from mimbench.engine.data.folders import Paths
from mimbench.engine.data.integrity import decoded, not_rgb


def check_coco(path: str | Path) -> Report:
    """Everything that can be said about the COCO data set at `path`."""
    root = Path(path)
    report = Report(root)
    found = {split: files for split in ("train", "val") if (files := coco_files(root, split)).annotations.is_file()}
    if not found:
        what = "has no annotations/instances_train2017.json and no annotations/instances_val2017.json"
        report.findings.append(
            Finding(
                "error",
                str(root),
                what,
                "images lie beside, in train2017/, val2017/; or it may be annotations/train.json, val.json and images/",
            )
        )
    elif len(found) == 1:
        what = f"has annotations of {next(iter(found))} alone"
        report.findings.append(Finding("warning", str(root), what, "runs that train and evaluate need both splits"))
    categories: dict[str, set[int]] = {}  # ids, of sound annotation files
    for split, files in found.items():
        report.extend(_split_findings(split, files, report.facts, categories))
    for one, other in itertools.permutations(categories, 2):
        if missing := sorted(categories[other] - categories[one]):
            what = f"lacks categories that {found[other].annotations.name} has (ids {missing[:5]})"
            report.findings.append(
                Finding("error", str(found[one].annotations), what, "both splits must list the same")
            )
    return report


def _split_findings(
    split: str, files: CocoFiles, facts: dict[str, int], categories: dict[str, set[int]]
) -> Iterator[Finding]:
    try:
        content = read_annotations(files.annotations)
    except ValueError as error:
        yield (
            error.finding if isinstance(error, UnfitError) else Finding("error", str(files.annotations), str(error), "")
        )
        return
    masks = _has_masks(content)
    findings = list(annotation_findings(content, files, masks))
    yield from findings
    if not masks:
        yield Finding("note", str(files.annotations), "has boxes but no masks", "train with heads.masks=false")
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        listed = [
            image for image in content["images"] if isinstance(image, dict) and isinstance(image.get("file_name"), str)
        ]
        yield from _image_findings(listed, files)
    if not any(finding.severity == "error" for finding in findings):
        facts.update(_facts(split, content))
        categories[split] = {category["id"] for category in content["categories"]}
        if not facts[f"{split} objects"]:
            yield _without_objects(split, files)


def _without_objects(split: str, files: CocoFiles) -> Finding:
    if split == "train":
        return Finding("error", str(files.annotations), "has no object to learn from", "crowd regions do not count")
    return Finding("warning", str(files.annotations), "has no object", "runs will measure nothing on it")


def _has_masks(content: Any) -> bool:
    """Whether any annotation has a segmentation, or there are none that could."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not annotations:
        return True
    return any(isinstance(annotation, dict) and annotation.get("segmentation") for annotation in annotations)


def _image_findings(images: list[dict[str, Any]], files: CocoFiles) -> Iterator[Finding]:
    there = [image for image in images if (files.images / image["file_name"]).is_file()]
    paths = Paths(files.images, [image["file_name"] for image in there])
    others = 0
    for image, seen in zip(there, decoded(paths, f"reading {files.images}", upright=True), strict=True):
        others += seen.finding is None and seen.mode != "RGB"
        if seen.finding:
            yield seen.finding
        elif (seen.height, seen.width) != (image.get("height"), image.get("width")):
            said = f"{image.get('width')} x {image.get('height')}"
            what = f"is {seen.width} x {seen.height}, but {files.annotations} says {said}"
            yield Finding("error", str(seen.path), what, "correct the annotation file, or restore the image")
    yield from not_rgb(others, len(there), files.images)


def _facts(split: str, content: dict[str, Any]) -> dict[str, int]:
    annotations = content["annotations"]
    crowds = sum(bool(annotation.get("iscrowd", 0)) for annotation in annotations)
    return {
        "categories": len(content["categories"]),
        f"{split} images": len(content["images"]),
        f"{split} images without annotations": len(content["images"]) - len({item["image_id"] for item in annotations}),
        f"{split} objects": len(annotations) - crowds,
        f"{split} crowd regions": crowds,
    }
