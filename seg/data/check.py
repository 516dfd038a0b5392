"""Check a data set of label maps before a run uses it.

    mimbench data check seg PATH

Reads every image and every label map of both splits. Reports: the full ADE20K instead of the 150-class set, label maps
in colour or with 16 bits, ids beyond the classes (for example labelIds instead of labelTrainIds), label maps whose size
differs from the image's (for example by EXIF rotation), missing label maps, maps without labels, and unused classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimbench.engine.data.datasets import Finding, Report, Severity, Split, UnfitError
from mimbench.engine.run.bar import track
from mimbench.seg.data.split import LabelledSplit, open_split

SHOWN = 20  # findings of one kind that are listed individually
SPLITS: tuple[Split, Split] = ("train", "val")


def check_segmentation(path: str | Path) -> Report:
    """Return all findings about the data set of label maps at `path`."""
    report = Report(Path(path))
    for split in SPLITS:
        try:
            opened = open_split(path, split)
        except UnfitError as error:
            if error.finding not in report.findings:
                report.findings.append(error.finding)
            continue
        report.extend(_few(_findings(opened, report.facts)))
    return report


def _few(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the first findings of each kind, and the number of the rest."""
    counts: dict[str, int] = {}
    last: dict[str, Finding] = {}
    for finding in findings:
        counts[finding.remedy] = counts.get(finding.remedy, 0) + 1
        last[finding.remedy] = finding
        if counts[finding.remedy] <= SHOWN:
            yield finding
    for remedy, count in counts.items():
        if count > SHOWN:
            folder = str(Path(last[remedy].file).parent)
            yield Finding(last[remedy].severity, folder, f"{count - SHOWN} more files have the same problem", remedy)


def _findings(split: LabelledSplit, facts: dict[str, int]) -> Iterator[Finding]:
    pixels = np.zeros(256, dtype=np.int64)
    facts[f"{split.split} images"] = len(split)
    facts["classes"] = len(split.classes)
    for index in track(range(len(split)), f"checking {split.split}", len(split)):
        found = _counts(split, index)
        if isinstance(found, Finding):
            yield found
            continue
        pixels += found
        if not found[: len(split.classes)].sum():
            yield _of(split, index, "note", "has no labelled pixel", "training and metrics ignore it")
    unseen = [name for name, count in zip(split.classes, pixels, strict=False) if not count]
    folder = str(split.store.path / split.layout.labels[split.split][0])
    if not pixels[: len(split.classes)].sum():
        yield Finding("error", folder, "has no labelled pixel in any map", "use ids other than 255 for classes")
    elif unseen:
        what = f"{len(unseen)} of {len(split.classes)} classes have no pixels: {', '.join(unseen[:5])}"
        yield Finding("note", folder, what, "the mean IoU excludes them unless they are predicted")


def _counts(split: LabelledSplit, index: int) -> NDArray[np.int64] | Finding:
    """Return the number of pixels of each class in an image, or the problem with the image or its label map."""
    try:
        _, labels = split.pair(index)
    except UnfitError as error:
        return error.finding
    except OSError as error:
        return _of(split, index, "error", error.strerror or str(error), "make the files readable")
    counts: NDArray[np.int64] = np.bincount(labels.ravel(), minlength=256)
    return counts


def _of(split: LabelledSplit, index: int, severity: Severity, what: str, remedy: str) -> Finding:
    file = str(split.store.path / split.pairs[index][1])
    return Finding(severity, file, what, remedy)
