"""Compare the two splits of a COCO data set: they must have the same categories, but not the same images."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mimbench.det.data.categories import Categories, category_findings
from mimbench.det.data.coco import CocoSplit
from mimbench.engine.data.datasets import Finding
from mimbench.engine.data.shared_images import COPY, HONEST, same_file, validation_fact
from mimbench.engine.run.process import rank_and_world

log = logging.getLogger(__name__)


def categories_of(split: CocoSplit) -> Categories:
    """Return the categories of a split, with its annotation file for messages."""
    return Categories.of(str(split.files.annotations), split.category_ids, split.categories)


def same_categories(train: CocoSplit, val: CocoSplit) -> Iterator[Finding]:
    """Yield errors where the splits' category ids or names differ."""
    yield from category_findings(categories_of(train), categories_of(val))


def shared_images(train: CocoSplit, val: CocoSplit) -> str:
    """Return the description of the validation images for `result.json`: "val split", or how many are training images.

    A warning is logged if there are any.
    """
    names = [[split.paths.name(place).rpartition("/")[2] for place in range(len(split))] for split in (train, val)]
    text = validation_fact(names[0], names[1], lambda other, place: same_file(train.paths[other], val.paths[place]))
    if text != HONEST and rank_and_world()[0] == 0:
        what = "the" if text == COPY else text.removesuffix(" are training images")
        log.warning(
            "%s: %s validation images are training images, so AP means little; use other images", val.files.images, what
        )
    return text
