"""Check one of ImageNet's robustness sets: classes, counts, and every image to its last byte.

mimbench data check imagenet-a PATH          # also -r, -sketch, -v2, -c; for ReaL check `imagenet`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mimbench.cls.data.check import image_findings
from mimbench.cls.data.robustness import ALEXNET_ERROR, EXTRA, Kind, Part, Robustness, robustness
from mimbench.engine.data.datasets import Finding, Report, UnfitError

IMAGES: dict[Kind, int] = {  # per part, as published
    "imagenet-a": 7_500,
    "imagenet-r": 30_000,
    "imagenet-sketch": 50_889,
    "imagenet-v2": 10_000,
    "imagenet-c": 50_000,
}
CLASSES: dict[Kind, int] = {"imagenet-a": 200, "imagenet-r": 200}  # others: all 1,000


def check_robustness(path: str | Path, kind: Kind) -> Report:
    """Return the report on the set of this kind at `path`."""
    report = Report(Path(path))
    try:
        test = robustness(kind, path)
    except UnfitError as error:
        report.findings.append(error.finding)
        return report
    except OSError as error:
        report.findings.append(Finding("error", str(path), error.strerror or str(error), "name the set's directory"))
        return report
    if kind == "imagenet-c":
        report.extend(_missing_corruptions(test, report.path))
    for part in test.parts:
        report.facts[f"{part.name} images".strip()] = len(part.folder)
        report.extend(_part_findings(kind, part))
    return report


def _part_findings(kind: Kind, part: Part) -> Iterator[Finding]:
    root, classes = str(part.folder.paths.root), len(part.folder.labels.unique())
    remedy = "accuracy on these cannot be compared with a paper's"
    if classes != (expected := CLASSES.get(kind, 1000)):
        yield Finding("error", root, f"has images of {classes} classes, but {kind} has {expected}", remedy)
    if (images := len(part.folder)) != (published := IMAGES.get(kind, 50_000)):
        yield Finding("error", root, f"has {images:,} images, but {kind} has {published:,}", remedy)
    yield from image_findings(part.folder.paths, {})


def _missing_corruptions(test: Robustness, root: Path) -> Iterator[Finding]:
    there = {part.name for part in test.parts}
    missing = [f"{name}/{grade}" for name in ALEXNET_ERROR for grade in range(1, 6) if f"{name}/{grade}" not in there]
    if missing:
        what = f"has no {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}: {len(missing)} of 75 are missing"
        yield Finding("error", str(root), what, "unpack all of them; mCE needs them")
    if extra := sorted({name.partition("/")[0] for name in there} & EXTRA):
        yield Finding(
            "note", str(root), f"also has {', '.join(extra)}", "they are evaluated, but not included in the means"
        )
