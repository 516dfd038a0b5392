"""What is wrong with a data set of label maps, found before a run finds it.

    mimbench data check seg PATH

Reads everything: every image and every label map of both splits. Named are: the full ADE20K in place of the 150-class
set, label pictures in colour or of 16 bits, ids beyond the classes (labelIds for labelTrainIds among them), sizes that
differ (images turned by EXIF among them), missing label maps, maps with nothing labelled, and classes never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimbench.engine.data.datasets import Finding, Report, Severity, Split, UnfitError
from mimbench.engine.run.bar import track
from mimbench.seg.data.split import LabelledSplit, open_split

SHOWN = 20  # findings of a kind that are listed one by one
SPLITS: tuple[Split, Split] = ("train", "val")


def check_segmentation(path: str | Path) -> Report:
    """Everything that can be said about the data set of label maps at `path`."""
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
    """The first of each kind, and how many more there are."""
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
            yield Finding(last[remedy].severity, folder, f"{count - SHOWN} more files have this fault", remedy)


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
            yield _of(split, index, "note", "has no labelled pixel", "nothing is learned or measured on it")
    unseen = [name for name, count in zip(split.classes, pixels, strict=False) if not count]
    folder = str(split.store.path / split.layout.labels[split.split][0])
    if not pixels[: len(split.classes)].sum():
        yield Finding("error", folder, "has no labelled pixel at all", "ids that are not 255 are classes")
    elif unseen:
        what = f"{len(unseen)} of {len(split.classes)} classes are never shown: {', '.join(unseen[:5])}"
        yield Finding("note", folder, what, "their IoU is left out of the mean unless they are predicted")


def _counts(split: LabelledSplit, index: int) -> NDArray[np.int64] | Finding:
    """Pixels of each class of an image; or what is wrong with it or its label map."""
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
