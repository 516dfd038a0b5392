"""Which validation images of a data set are also training images: the numbers measured on those mean little.

    validation_fact(train_names, val_names, same)     # "val split", or what is wrong: the fact of `result.json`

Images are the same if they have the same name and the same bytes. Other names are noticed only where the whole split is
a copy in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HONEST = "val split"  # no validation image is known to be a training image
COPY = "the training images: the val split is a copy"
LOOKED_AT = 16  # images compared between splits of equal length with different names

Same = Callable[[int, int], bool]  # (number of a training image, of a validation image) -> whether they are the same


def validation_fact(train: Iterable[str], val: Sequence[str], same: Same) -> str:
    """Return the description of the validation images for `result.json`, given the names of both splits' images."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(val):
        places.setdefault(name, []).append(place)
    found: set[int] = set()
    count = 0
    for other, name in enumerate(train):
        count += 1
        found |= {place for place in places.get(name, ()) if place not in found and same(other, place)}
    if not found and count == len(val) and count:
        looked_at = range(0, count, max(1, count // LOOKED_AT))
        found = set(range(count)) if all(same(place, place) for place in looked_at) else set()
    if not found:
        return HONEST
    return COPY if len(found) == len(val) else f"{len(found)} of {len(val)} are training images"


def measured_on(result: Mapping[str, Any]) -> str:
    """Return which of the validation images of a `result.json` are training images; "" if none are known to be."""
    facts = result.get("facts")
    said = str(facts.get("validation", HONEST)) if isinstance(facts, Mapping) else HONEST
    if said == HONEST:
        return ""
    some = said.endswith(" are training images")
    return said.replace(" are ", " validation images are ") if some else "measured on the training images"


def same_file(one: Path, other: Path) -> bool:
    """Return whether two files are the same or have the same bytes; False if one does not exist."""
    try:
        if one.samefile(other):
            return True
        return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
    except OSError:
        return False
