"""The 1,000 classes of ImageNet-1k, their order, and the subsets that robustness sets test; from timm, offline.

A classifier's output number i stands for the i-th wnid in sorted order. That order is what PyTorch, TensorFlow, Keras
and timm use; the development kit numbers the classes otherwise (its ILSVRC2012_ID), which is the classic cause of an
accuracy near zero.
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
    """The wnids of the 1,000 classes in the order of a classifier's outputs."""
    return _lines("imagenet_synsets.txt")


@cache
def names() -> tuple[str, ...]:
    """What the classes are called, in the same order: "tench, Tinca tinca" is the first."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions())


def indices(classes: Sequence[str]) -> list[int | None]:
    """The number in ImageNet-1k of each class named by wnid; None for others.

    1,000 classes that are called by their numbers (WebDataset names none) are taken to be in ImageNet's order.
    """
    if list(classes) == [str(number) for number in range(len(wnids()))]:
        return list(range(len(classes)))
    places = {wnid: place for place, wnid in enumerate(wnids())}
    return [places.get(name) for name in classes]


@cache
def imagenet_a_wnids() -> tuple[str, ...]:
    """The 200 classes of ImageNet-A."""
    return _lines("imagenet_a_synsets.txt")


@cache
def imagenet_r_wnids() -> tuple[str, ...]:
    """The 200 classes of ImageNet-R."""
    return _lines("imagenet_r_synsets.txt")


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """ReaL's classes of each of the 50,000 validation images, in the order of their numbers; some have none."""
    return tuple(map(tuple, json.loads(_text("imagenet_real_labels.json"))))


def val_number(name: str) -> int | None:
    """The number (from 0) of a validation image by its file's name, ILSVRC2012_val_00000001.JPEG being 0."""
    found = VAL_NAME.search(name)
    return int(found[1]) - 1 if found and 0 < int(found[1]) <= IMAGES["val"] else None


def _text(name: str) -> str:
    content = pkgutil.get_data("timm.data", f"_info/{name}")
    assert content is not None
    return content.decode("utf-8")


def _lines(name: str) -> tuple[str, ...]:
    return tuple(_text(name).split())
