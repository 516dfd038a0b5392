"""What can be wrong with a COCO annotation file, besides what its images hold.

    for finding in annotation_findings(content, files): ...      # `mimbench data check coco`: all of them
    require(annotation_findings(content, files))                 # a run: stops at the first error

Errors are what a run would stop at or silently get wrong; COCO's own quirks (boxes without height, boxes a little
outside their image) are warnings at most. It is a few seconds' work for COCO's 860,000 annotations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimbench.engine.data.datasets import CocoFiles, Finding

Entry = dict[str, Any]
Fault = tuple[str, str]  # what is wrong, what to do
OVERHANG = 1.0  # pixels by which COCO's rounded boxes may stick out


def annotation_findings(content: Any, files: CocoFiles, masks: bool = True) -> Iterator[Finding]:
    """Everything wrong with the parsed annotation file of a split, and images of it that are not there.

    Without `masks` nothing is asked of segmentations: boxes alone will do.
    """
    file = str(files.annotations)

    def errors(faults: Iterable[Fault]) -> Iterator[Finding]:
        return (Finding("error", file, what, remedy) for what, remedy in faults)

    broken = list(errors(_structure(content, masks)))
    yield from broken
    if broken:
        return
    yield from errors(_twice(content))
    yield from _missing_images(content["images"], files)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        if (fault := _reference(annotation, sizes, categories) or _shape(annotation, sizes, masks)) is not None:
            yield Finding("error", file, f"annotation {annotation['id']} {fault[0]}", fault[1])
        elif (what := _odd_box(annotation, sizes)) is not None:
            yield Finding("warning", file, f"annotation {annotation['id']} {what}", "")


# -------------------------------------------------------------------------------------------------------- structure

_LISTS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {
        "id": lambda value: isinstance(value, int),
        "file_name": lambda value: isinstance(value, str) and bool(value),
        "height": lambda value: isinstance(value, int) and value > 0,
        "width": lambda value: isinstance(value, int) and value > 0,
    },
    "categories": {
        "id": lambda value: isinstance(value, int),
        "name": lambda value: isinstance(value, str),
    },
    "annotations": {
        "id": lambda value: isinstance(value, int),
        "image_id": lambda value: isinstance(value, int),
        "category_id": lambda value: isinstance(value, int),
        "bbox": lambda value: isinstance(value, list) and len(value) == 4 and all(map(_finite, value)),
        "segmentation": lambda value: isinstance(value, list | dict),
        "area": lambda value: _finite(value) and value >= 0,
        "iscrowd": lambda value: isinstance(value, int | float) and value in (0, 1),
    },
}
_MAY_LACK = {"area": 0, "iscrowd": 0}  # and what stands for them here; without an area the box's is taken


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _structure(content: Any, masks: bool) -> Iterator[Fault]:
    """Lists that are missing, and entries without what every entry has."""
    if not isinstance(content, dict):
        yield "is not a COCO annotation file", "it must be an object with images, annotations and categories"
        return
    for name, keys in _LISTS.items():
        needed = {key: fits for key, fits in keys.items() if masks or key != "segmentation"}
        entries = content.get(name)
        if not isinstance(entries, list):
            yield f"has no list of {name}", "it must be an object with images, annotations and categories"
        elif not entries and name != "annotations":
            yield f"lists no {name}", f"add the {name}"
        else:
            yield from _entries(name, entries, needed)


def _entries(name: str, entries: list[Any], keys: dict[str, Callable[[Any], bool]]) -> Iterator[Fault]:
    for place, entry in enumerate(entries):
        known = entry if isinstance(entry, dict) else {}
        for key, fits in keys.items():
            if not fits(known.get(key, _MAY_LACK.get(key))):
                what = f"{name}[{place}] (id {known.get('id')}) has no usable {key}"
                without = "; heads.masks=false trains without masks" if key == "segmentation" else ""
                yield what, (f"{key} is {known[key]!r:.60}" if key in known else f"add {key}") + without
                break


def _twice(content: Entry) -> Iterator[Fault]:
    """Ids given more than once."""
    for name in _LISTS:
        seen: set[int] = set()
        for entry in content[name]:
            if entry["id"] in seen:
                yield f"{name} has id {entry['id']} twice", "give each its own id"
            seen.add(entry["id"])


def _missing_images(images: list[Entry], files: CocoFiles) -> Iterator[Finding]:
    """Images in the list without a file. One reading of the folder, not a question for each file."""
    if not files.images.is_dir():
        yield Finding(
            "error", str(files.images), "does not exist", f"{files.annotations} lists images that belong there"
        )
        return
    there = set(os.listdir(files.images))  # noqa: PTH208 (names are all that is wanted)
    for image in images:
        name = image["file_name"]
        if name not in there and not ("/" in name and (files.images / name).is_file()):
            what = f"does not exist, but image {image['id']} of {files.annotations} names it"
            yield Finding(
                "error", str(files.images / name), what, "add the file, or remove the image and its annotations"
            )


# ------------------------------------------------------------------------------------------------------ annotations


def _reference(annotation: Entry, sizes: dict[int, tuple[int, int]], categories: set[int]) -> Fault | None:
    if annotation["image_id"] not in sizes:
        what = f"refers to image {annotation['image_id']}, which is not in the list of images"
        return what, "add the image, or remove the annotation"
    if annotation["category_id"] not in categories:
        what = f"has category {annotation['category_id']}, which is not one of the {len(categories)} categories"
        return what, "correct category_id, or add the category"
    return None


def _shape(annotation: Entry, sizes: dict[int, tuple[int, int]], masks: bool) -> Fault | None:
    height, width = sizes[annotation["image_id"]]
    x, y, w, h = annotation["bbox"]
    if w < 0 or h < 0 or x >= width or y >= height or x + w < 0 or y + h < 0:
        return f"has bbox {annotation['bbox']}, outside its image of {width} x {height}", "it is [x, y, width, height]"
    if not masks:
        return None
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, height, width)
    return _polygons(segmentation)


def _polygons(polygons: list[Any]) -> Fault | None:
    if not polygons:
        return "has an empty polygon", "draw it, or remove the annotation; heads.masks=false trains without masks"
    for polygon in polygons:
        if not isinstance(polygon, list) or not _numbers(polygon):
            return "has a polygon that is not a list of numbers", "a polygon is [x1, y1, x2, y2, ...]"
        if len(polygon) < 6 or len(polygon) % 2:
            kind = "an empty polygon" if not polygon else f"a polygon of {len(polygon)} numbers"
            return f"has {kind}", "it takes three points, [x1, y1, x2, y2, x3, y3], or more"
    return None


def _numbers(polygon: list[Any]) -> bool:
    """Whether all are finite numbers; their sum says so ten times as fast as looking at each."""
    try:
        return math.isfinite(sum(polygon))
    except TypeError:
        return False


def _run_lengths(mask: Entry, height: int, width: int) -> Fault | None:
    counts, size = mask.get("counts"), mask.get("size")
    if size != [height, width]:
        return f"has a mask of size {size} in an image of {[height, width]}", "sizes are [height, width]"
    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != height * width:
            return "has run lengths that do not fill the image", f"they must add up to {height * width}"
    elif not isinstance(counts, str) or not counts:
        return "has a mask without counts", "counts is a list of run lengths, or pycocotools' compressed text"
    elif (lengths := _uncompressed(counts)) is None or lengths.min() < 0 or lengths.sum() != height * width:
        return "has compressed run lengths that do not fill the image", f"they must add up to {height * width}"
    return None


def _uncompressed(counts: str) -> NDArray[np.int64] | None:
    """The run lengths in pycocotools' compressed text; None if it is no such text.

    A number is one character for each 5 bits, the lowest first: 48, the bits, 32 if more follow; 16 in the last one is
    the sign. From the fourth on numbers are differences to the one before last.
    """
    codes = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0) + 1
    if codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes):
        return None
    begins = np.concatenate([[0], ends[:-1]])
    if (ends - begins).max() > 7:  # beyond 32 bits
        return None
    places = np.arange(len(codes)) - np.repeat(begins, ends - begins)
    numbers = np.add.reduceat((codes & 31) << (5 * places), begins)
    numbers -= np.where(codes[ends - 1] & 16, 1 << (5 * (ends - begins)), 0)
    for of_one_kind in (numbers[1::2], numbers[2::2]):
        of_one_kind[:] = of_one_kind.cumsum()
    return numbers


def _odd_box(annotation: Entry, sizes: dict[int, tuple[int, int]]) -> str | None:
    height, width = sizes[annotation["image_id"]]
    x, y, w, h = annotation["bbox"]
    if w == 0 or h == 0:
        return f"has bbox {annotation['bbox']} without area"
    if min(x, y) < -OVERHANG or x + w > width + OVERHANG or y + h > height + OVERHANG:
        return f"has bbox {annotation['bbox']}, partly outside its image of {width} x {height}"
    return None
