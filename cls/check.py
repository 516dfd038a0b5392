"""What is wrong with a folder of images, found before a run finds it.

    mimbench data check imagenet PATH

Reads everything: the layout, the classes of both splits, every image to its last byte. A run that opens the folder
raises the first error of the layout itself, and names a broken image when it comes to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.datasets import Finding, Report, Split, UnfitError, image_root
from engine.decoding import decoded, not_rgb
from engine.folders import Files, Paths, class_names, labelled_files, split_directory
from engine.shards import Shards, packed


def check_images(path: str | Path) -> Report:
    """Everything that can be said about the ImageFolder at `path`."""
    root = Path(path)
    report = Report(root)
    if not root.is_dir():
        report.findings.append(Finding("error", str(root), "does not exist", "name a directory with train/ and val/"))
        return report
    splits = [split for split in ("train", "val") if (image_root(root) / split).is_dir()]
    if len(splits) < 2:
        report.findings.append(_incomplete(root, splits))
    try:
        classes = _classes(split_directory(root, "val" if splits == ["val"] else "train")[0])
    except UnfitError as error:
        report.findings.append(error.finding)
        return report
    report.facts["classes"] = len(classes)
    for split in splits or ["train"]:
        report.extend(_split_findings(root, "val" if split == "val" else "train", classes, report.facts))
    return report


def _incomplete(root: Path, splits: list[str]) -> Finding:
    if splits:
        return Finding("warning", str(root), f"has {splits[0]}/ alone", "runs that train and evaluate need both splits")
    return Finding(
        "warning", str(root), "has no train/ and val/", "all its images serve as both; accuracy means little"
    )


def _split_findings(root: Path, split: Split, classes: list[str], facts: dict[str, int]) -> Iterator[Finding]:
    directory, splitless = split_directory(root, split)
    try:
        paths, labels = _files(directory, classes)
    except UnfitError as error:
        yield error.finding
        return
    facts["images" if splitless else f"{split} images"] = len(paths)
    yield from _empty_classes(directory, labels, classes)
    others = 0
    for image in decoded(paths, f"reading {directory}"):
        others += image.finding is None and image.mode != "RGB"
        if image.finding:
            yield image.finding
    yield from not_rgb(others, len(paths), directory)


def _classes(directory: Path) -> list[str]:
    return Shards(directory).classes if packed(directory) else class_names(directory)


def _files(directory: Path, classes: list[str]) -> tuple[Files, list[int]]:
    """The images of a split and their labels."""
    if packed(directory):
        shards = Shards(directory)
        return shards, shards.labels.tolist()
    names, labels = labelled_files(directory, classes)
    return Paths(directory, names), labels


def _empty_classes(directory: Path, labels: list[int], classes: list[str]) -> Iterator[Finding]:
    for number in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist():
        yield Finding("warning", str(directory / classes[number]), "holds no images", "add some, or remove the class")
