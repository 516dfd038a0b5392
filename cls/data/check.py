"""Check a data set of labelled images before a run fails on it or silently loses accuracy.

    mimbench data check imagenet PATH        # as published: classes, counts, order of labels
    mimbench data check images PATH          # any data set of labelled images, in any supported layout

Reads the layout, the classes of both splits, and every image to its last byte, with one process per core. Reports
images that are truncated, unreadable or not RGB, classes without images, validation images that are also training
images (by their bytes), and, for ImageNet, labels that must be wrong (check_labels.py). A run raises only the first
error of the layout when it opens the data, and reports a broken image only when it reads that image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mimbench.cls.data.check_labels import class_findings, count_findings, file_name_findings, real_findings
from mimbench.engine.data.datasets import Finding, Report, Split, UnfitError
from mimbench.engine.data.folders import Files
from mimbench.engine.data.integrity import decoded
from mimbench.engine.data.layouts.listing import Listing
from mimbench.engine.data.layouts.recognise import open_listing, splits_of

NAMED = 3  # files in a message
MODES = {"L": "greyscale", "P": "palette", "CMYK": "CMYK", "RGBA": "with alpha", "LA": "grey with alpha"}

_NO_SPLITS: list[Split] = ["train"]  # train then serves as both splits
Digests = dict[bytes, str]  # digest of an image's bytes: its path


def check_images(path: str | Path, kind: str = "images") -> Report:
    """Return the report on the data set at `path`; `kind`: its expected type, see `check_labels.KNOWN`."""
    root = Path(path)
    report = Report(root)
    if not root.is_dir() and not splits_of(root):
        report.findings.append(Finding("error", str(root), "does not exist", "name a directory with train/ and val/"))
        return report
    splits = splits_of(root)
    listings = _listings(root, splits, report)
    report.extend(_layout_findings(root, splits, listings))
    if not listings:
        return report
    classes = next(iter(listings.values())).classes
    report.facts["classes"] = len(classes)
    report.extend(class_findings(kind, classes, root))
    _check_splits(kind, listings, report)
    return report


def _listings(root: Path, splits: list[Split], report: Report) -> dict[Split, Listing]:
    """Return the splits that can be opened; add the errors of the others to the report."""
    listings: dict[Split, Listing] = {}
    for split in splits or _NO_SPLITS:
        try:
            listings[split] = open_listing(root, split)
        except UnfitError as error:
            report.findings += [error.finding] if error.finding not in report.findings else []
        except (FileNotFoundError, ValueError) as error:
            report.findings.append(Finding("error", str(root), str(error), ""))
    return listings


def _layout_findings(root: Path, splits: list[Split], listings: dict[Split, Listing]) -> Iterator[Finding]:
    if not splits:
        yield Finding(
            "warning", str(root), "has no train/ and val/", "all images serve as both; accuracy then means little"
        )
    if len(splits) == 1:
        remedy = "runs that train and evaluate need both splits"
        yield Finding("warning", str(root), f"has only {splits[0]}/", remedy)
    for split, listing in listings.items():
        if listing.layout != "class folders":
            yield Finding("note", str(root), f"{split} is read as: {listing.layout}", "")


def _check_splits(kind: str, listings: dict[Split, Listing], report: Report) -> None:
    digests: dict[Split, Digests] = {}
    for split, listing in listings.items():
        report.facts["images" if listing.splitless else f"{split} images"] = len(listing.files)
        if not listing.splitless:
            report.extend(count_findings(kind, split, len(listing.files), listing.files.root))
        report.extend(_empty_classes(listing))
        report.extend(file_name_findings(listing))
        if kind == "imagenet" and split == "val":
            report.extend(real_findings(listing, listing.files.root))
        digests[split] = {}
        report.extend(image_findings(listing.files, digests[split]))
    if len(digests) == 2:
        report.extend(_in_both(digests["train"], digests["val"], report.facts))


def _empty_classes(listing: Listing) -> Iterator[Finding]:
    counts = np.bincount(listing.labels.numpy(), minlength=len(listing.classes))
    empty = [listing.classes[number].strip("/") for number in np.flatnonzero(counts == 0).tolist()]
    remedy = "add some, or remove the class"
    if len(empty) > NAMED:
        what = f"{len(empty)} classes have no images: {', '.join(empty[:NAMED])}, ..."
        yield Finding("warning", str(listing.files.root), what, remedy)
    else:
        yield from (Finding("warning", str(listing.files.root / name), "holds no images", remedy) for name in empty)


def image_findings(files: Files, digests: Digests) -> Iterator[Finding]:
    """Decode every image and yield findings; add the digests of readable images to `digests`."""
    modes: dict[str, list[str]] = {}
    for image in decoded(files, f"reading {files.root}"):
        if image.finding is not None:
            yield image.finding
            continue
        digests[image.digest] = str(image.path)
        if image.mode != "RGB":
            modes.setdefault(image.mode, []).append(str(image.path))
    if modes:
        counted = ", ".join(f"{len(paths)} {MODES.get(mode, mode)} ({paths[0]})" for mode, paths in modes.items())
        of = f"{sum(map(len, modes.values()))} of {len(files)} images are not RGB"
        yield Finding("note", str(files.root), f"{of}: {counted}", "read as RGB")


def _in_both(train: Digests, val: Digests, facts: dict[str, int]) -> Iterator[Finding]:
    """Yield findings about validation images that equal training images byte for byte."""
    twice = [digest for digest in val if digest in train]
    if not twice:
        return
    facts["val images in train"] = len(twice)
    pairs = "; ".join(f"{val[digest]} is {train[digest]}" for digest in twice[:NAMED])
    if len(twice) == len(val):
        what = f"all validation images are training images: {pairs}"
        yield Finding(
            "error",
            str(Path(val[twice[0]]).parent),
            what,
            "accuracy on them means nothing; use the real validation images",
        )
    else:
        what = f"{len(twice)} of {len(val)} validation images are also training images: {pairs}"
        yield Finding(
            "warning", str(Path(val[twice[0]])), what, "remove them from train/, or report it with the numbers"
        )
