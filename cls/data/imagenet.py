"""The 1,000 classes of ImageNet-1k, their order, and the subsets used by robustness sets; from timm, offline.

Output i of a classifier is the i-th wnid in sorted order. PyTorch, TensorFlow, Keras and timm use this order. The
development kit uses another (ILSVRC2012_ID), which is a common cause of an accuracy near zero.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Sequence
from functools import cache

WNID = re.compile(r"n\d{8}")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
IMAGES = {"train": 1_281_167, "val": 50_000}


@cache
def wnids() -> tuple[str, ...]:
    """Return the wnids of the 1,000 classes in the order of a classifier's outputs."""
    return _lines("imagenet_synsets.txt")


@cache
def names() -> tuple[str, ...]:
    """Return the names of the classes, in the same order: "tench, Tinca tinca" is the first."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions())


def indices(classes: Sequence[str]) -> list[int | None]:
    """Return the ImageNet-1k index of each class named by wnid; None for other classes.

    1,000 classes named by their numbers (WebDataset stores no names) are assumed to be in ImageNet's order.
    """
    if list(classes) == [str(number) for number in range(len(wnids()))]:
        return list(range(len(classes)))
    places = {wnid: place for place, wnid in enumerate(wnids())}
    return [places.get(name) for name in classes]


@cache
def imagenet_a_wnids() -> tuple[str, ...]:
    """Return the 200 classes of ImageNet-A."""
    return _lines("imagenet_a_synsets.txt")


@cache
def imagenet_r_wnids() -> tuple[str, ...]:
    """Return the 200 classes of ImageNet-R."""
    return _lines("imagenet_r_synsets.txt")


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """Return ReaL's classes of each of the 50,000 validation images, in order; some images have no class."""
    return tuple(map(tuple, json.loads(_text("imagenet_real_labels.json"))))


def val_number(name: str) -> int | None:
    """Return the number of a validation image from its file name: 0 for ILSVRC2012_val_00000001.JPEG."""
    found = VAL_NAME.search(name)
    return int(found[1]) - 1 if found and 0 < int(found[1]) <= IMAGES["val"] else None


def _text(name: str) -> str:
    content = pkgutil.get_data("timm.data", f"_info/{name}")
    assert content is not None
    return content.decode("utf-8")


def _lines(name: str) -> tuple[str, ...]:
    return tuple(_text(name).split())
