"""Check a COCO data set before a run fails on it.

    mimbench data check coco PATH

Reads the annotation files of both splits and every image they list, to its last byte. A run raises only the first
annotation error or missing image when it opens a split, and reports a broken image only when it reads that image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.det.data.annotations import annotation_findings
from mimbench.det.data.categories import Categories, category_findings
from mimbench.det.data.coco import layout_hint, read_annotations
from mimbench.det.data.findings import Fault, grouped
from mimbench.det.data.image_files import with_images
from mimbench.engine.data.datasets import CocoFiles, Finding, Report, Severity, UnfitError, coco_files
from mimbench.engine.data.folders import Paths
from mimbench.engine.data.integrity import decoded, not_rgb


@dataclass
class _Found:
    """Data for comparing both splits: categories of valid files, and images by the digest of their bytes."""

    categories: dict[str, Categories] = field(default_factory=dict)
    images: dict[str, dict[bytes, str]] = field(default_factory=dict)


def check_coco(path: str | Path) -> Report:
    """Return the report on the COCO data set at `path`."""
    root = Path(path)
    report = Report(root)
    files = {split: coco_files(root, split) for split in ("train", "val")}
    there = {split: of for split, of in files.items() if of.annotations.is_file()}
    if not there:
        what = "has no annotations/instances_train2017.json and no annotations/instances_val2017.json"
        report.findings.append(Finding("error", str(root), what, layout_hint(files["train"].annotations)))
    elif len(there) == 1:
        what = f"has annotations only for {next(iter(there))}"
        missing = next(of.annotations for split, of in files.items() if split not in there)
        remedy = f"runs that train and evaluate need both splits; {layout_hint(missing)}"
        report.findings.append(Finding("warning", str(root), what, remedy))
    found = _Found()
    for split, of in there.items():
        report.extend(_split_findings(split, of, report.facts, found))
    if len(found.categories) == len(files):
        report.extend(category_findings(found.categories["train"], found.categories["val"]))
    if len(found.images) == len(files):
        report.extend(_in_both(found.images["train"], found.images["val"], files["val"], report.facts))
    return report


def _split_findings(split: str, files: CocoFiles, facts: dict[str, int], found: _Found) -> Iterator[Finding]:
    try:
        content = read_annotations(files.annotations)
    except ValueError as error:
        yield (
            error.finding if isinstance(error, UnfitError) else Finding("error", str(files.annotations), str(error), "")
        )
        return
    content, files, notes = with_images(content, files)
    yield from notes
    masks = _has_masks(content)
    findings = list(annotation_findings(content, files, masks))
    yield from findings
    if not masks:
        yield Finding("note", str(files.annotations), "has boxes but no masks", "train with heads.masks=false")
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        listed = [
            image for image in content["images"] if isinstance(image, dict) and isinstance(image.get("file_name"), str)
        ]
        yield from _image_findings(listed, files, found.images.setdefault(split, {}))
    if not any(finding.severity == "error" for finding in findings):
        facts.update(_facts(split, content))
        categories = content["categories"]
        names = {category["id"]: category["name"] for category in categories}
        found.categories[split] = Categories(str(files.annotations), names)
        if not facts[f"{split} objects"]:
            yield _without_objects(split, files)


def _in_both(
    train: dict[bytes, str], val: dict[bytes, str], files: CocoFiles, facts: dict[str, int]
) -> Iterator[Finding]:
    """Yield findings about images that are in both splits, by their bytes."""
    shared = [digest for digest in val if digest in train]
    if not shared:
        return
    facts["val images in train"] = len(shared)
    first = f"(the first: {val[shared[0]]} is {train[shared[0]]})"
    if len(shared) == len(val):
        what = f"all {len(val):,} validation images are training images {first}"
        yield Finding("error", str(files.annotations), what, "AP on them means nothing; use other validation images")
    else:
        what = f"{len(shared):,} of {len(val):,} validation images are training images {first}"
        yield Finding("warning", str(files.annotations), what, "remove them from one of the splits")


def _without_objects(split: str, files: CocoFiles) -> Finding:
    if split == "train":
        return Finding(
            "error", str(files.annotations), "has no objects to train on", "add annotations; crowd regions do not count"
        )
    return Finding(
        "warning", str(files.annotations), "has no objects", "evaluations on it have no metrics; add annotations"
    )


def _has_masks(content: Any) -> bool:
    """Whether any annotation has a segmentation, or there are no annotations."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not annotations:
        return True
    return any(isinstance(annotation, dict) and annotation.get("segmentation") for annotation in annotations)


def _image_findings(images: list[dict[str, Any]], files: CocoFiles, digests: dict[bytes, str]) -> Iterator[Finding]:
    """Yield findings about existing images; add the names of readable images to `digests`."""
    there = [image for image in images if (files.images / image["file_name"]).is_file()]
    paths = Paths(files.images, [image["file_name"] for image in there])
    faults: list[Fault] = []
    modes: Counter[str] = Counter()
    copies: list[tuple[str, str]] = []
    for image, seen in zip(there, decoded(paths, f"reading {files.images}", upright=True), strict=True):
        if seen.finding:
            faults.append(Fault(seen.finding.what, *_parts(seen.finding)))
            continue
        modes[seen.mode] += 1
        if (seen.height, seen.width) != (image.get("height"), image.get("width")):
            said = f"{image.get('width')} x {image.get('height')}"
            what = f"is {seen.width} x {seen.height}, but {files.annotations} says {said}"
            faults.append(Fault("size", str(seen.path), what, "correct the annotation file, or restore the image"))
        first = digests.setdefault(seen.digest, image["file_name"])
        if first != image["file_name"]:
            copies.append((image["file_name"], first))
    yield from grouped(faults)
    if copies:
        first = "{} of {}".format(*copies[0])
        what = f"{len(copies):,} of {len(there):,} images are copies of another image (the first: {first})"
        yield Finding("warning", str(files.images), what, "each counts as a separate image; remove unwanted copies")
    yield from not_rgb(modes, files.images)


def _parts(finding: Finding) -> tuple[str, str, str, Severity]:
    return finding.file, finding.what, finding.remedy, finding.severity


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
