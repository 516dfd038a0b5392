"""Compare the two splits of a COCO data set: they must have the same categories, but not the same images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from mimbench.det.data.categories import Categories, category_findings
from mimbench.det.data.coco import CocoSplit
from mimbench.engine.data.datasets import Finding
from mimbench.engine.run.process import rank_and_world

log = logging.getLogger(__name__)

LOOKED_AT = 16  # images compared between splits of equal length with different names


def categories_of(split: CocoSplit) -> Categories:
    """Return the categories of a split, with its annotation file for messages."""
    return Categories.of(str(split.files.annotations), split.category_ids, split.categories)


def same_categories(train: CocoSplit, val: CocoSplit) -> Iterator[Finding]:
    """Yield errors where the splits' category ids or names differ."""
    yield from category_findings(categories_of(train), categories_of(val))


def shared_images(train: CocoSplit, val: CocoSplit) -> str:
    """Return the description of the validation images for `result.json`: "val split", or how many are training images.

    Images are equal if they are the same file, or files of the same name with the same bytes. Other names are detected
    only if the whole split is a copy in the same order. A warning is logged if there are any.
    """
    count = sum(1 for _ in _in_both(train, val))
    if not count and len(train) == len(val):
        places = range(0, len(val), max(1, len(val) // LOOKED_AT))
        count = len(val) if all(_same(train.paths[place], val.paths[place]) for place in places) else 0
    if not count:
        return "val split"
    whole = count == len(val)
    text = "the training images: the val split is a copy" if whole else f"{count} of {len(val)} are training images"
    if rank_and_world()[0] == 0:
        what = "the" if whole else f"{count:,} of {len(val):,}"
        log.warning(
            "%s: %s validation images are training images, so AP means little; use other images", val.files.images, what
        )
    return text


def _in_both(train: CocoSplit, val: CocoSplit) -> Iterator[int]:
    """Yield the indices of validation images that are training images."""
    known: dict[str, list[int]] = {}
    for place in range(len(train)):
        known.setdefault(train.paths.name(place).rpartition("/")[2], []).append(place)
    for place in range(len(val)):
        for other in known.get(val.paths.name(place).rpartition("/")[2], ()):
            if _same(train.paths[other], val.paths[place]):
                yield place
                break


def _same(one: Path, other: Path) -> bool:
    """Whether two files are the same or have the same bytes; False if one does not exist."""
    try:
        if one.samefile(other):
            return True
        return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
    except OSError:
        return False
