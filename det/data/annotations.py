"""Check a COCO annotation file, apart from the contents of its images.

    for finding in annotation_findings(content, files): ...      # `mimbench data check coco`: all of them
    require(annotation_findings(content, files))                 # a run: raises the first error

Faults that would stop a run or silently change its result are errors; faults that COCO itself has (boxes without
height, boxes slightly outside their image) are at most warnings. Entries with the same fault are one finding with a
count. COCO's 860,000 annotations take a few seconds. `det.data.contradictions` adds contradictions between entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any

from mimbench.det.data.contradictions import OVERHANG, contradictions
from mimbench.det.data.findings import Fault, grouped
from mimbench.det.data.image_files import missing_images
from mimbench.det.data.run_lengths import run_lengths
from mimbench.engine.data.datasets import CocoFiles, Finding

Entry = dict[str, Any]
LARGEST = 2**31 - 1  # largest height and width in the arrays of `det.data.coco`


def annotation_findings(content: Any, files: CocoFiles, masks: bool = True) -> Iterator[Finding]:
    """Yield the faults of the parsed annotation file of a split, and its missing images.

    With `masks` false, segmentations are not checked and may be missing.
    """
    file = str(files.annotations)
    broken = list(grouped(_structure(content, masks, file)))
    yield from broken
    if broken:
        return
    yield from grouped(_twice(content, file))
    yield from grouped(missing_images(content["images"], files))
    faulty = list(grouped(_faults(content, masks, file)))
    yield from faulty
    if not any(finding.severity == "error" for finding in faulty):
        yield from contradictions(content, file, masks)


def _faults(content: Entry, masks: bool, file: str) -> Iterator[Fault]:
    """Yield the faults of each annotation by itself."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        if (fault := _reference(annotation, sizes, categories) or _shape(annotation, sizes, masks)) is not None:
            kind, what, remedy = fault
            yield Fault(kind, file, f"annotation {annotation['id']} {what}", remedy)
        elif (odd := odd_box(annotation, sizes)) is not None:
            yield Fault(odd[0], file, f"annotation {annotation['id']} {odd[1]}", severity="warning")


# -------------------------------------------------------------------------------------------------------- structure


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _length(value: Any) -> bool:
    return _whole(value) and 0 < value <= LARGEST


_LISTS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {
        "id": _whole,
        "file_name": lambda value: isinstance(value, str) and bool(value),
        "height": _length,
        "width": _length,
    },
    "categories": {
        "id": _whole,
        "name": lambda value: isinstance(value, str),
    },
    "annotations": {
        "id": _whole,
        "image_id": _whole,
        "category_id": _whole,
        "bbox": lambda value: isinstance(value, list) and len(value) == 4 and all(map(_finite, value)),
        "segmentation": lambda value: isinstance(value, list | dict),
        "area": lambda value: _finite(value) and value >= 0,
        "iscrowd": lambda value: isinstance(value, int | float) and value in (0, 1),
    },
}
_USUAL: dict[str, Callable[[list[Any]], bool]] = {  # whether all values of a key have COCO's own form, checked at once
    **dict.fromkeys(("id", "image_id", "category_id"), lambda values: _types(values) == {int}),
    **dict.fromkeys(
        ("height", "width"), lambda values: _types(values) == {int} and min(values) > 0 and max(values) <= LARGEST
    ),
    "file_name": lambda values: _types(values) == {str} and all(values),
    "name": lambda values: _types(values) == {str},
    "bbox": lambda values: (
        _types(values) == {list} and set(map(len, values)) == {4} and _usual_numbers(list(chain.from_iterable(values)))
    ),
    "segmentation": lambda values: _types(values) <= {list, dict},
    "area": lambda values: _usual_numbers(values) and min(values) >= 0,
    "iscrowd": lambda values: _usual_numbers(values) and set(values) <= {0, 1},
}
_MAY_LACK = {"area": 0, "iscrowd": 0}  # and their defaults; a missing area is taken from the box
_IDS = ("id", "image_id", "category_id", "height", "width")


def _structure(content: Any, masks: bool, file: str) -> Iterator[Fault]:
    """Yield missing lists, and entries without required keys."""
    form = "it must be a JSON object with images, annotations and categories"
    if not isinstance(content, dict):
        yield Fault("content", file, "is not a COCO annotation file", form)
        return
    for name, keys in _LISTS.items():
        needed = {key: fits for key, fits in keys.items() if masks or key != "segmentation"}
        entries = content.get(name)
        if not isinstance(entries, list):
            yield Fault(name, file, f"has no list of {name}", form)
        elif not entries and name != "annotations":
            yield Fault(name, file, f"has an empty list of {name}", f"add the {name}")
        else:
            yield from _entries(name, entries, needed, file)


def _entries(name: str, entries: list[Any], keys: dict[str, Callable[[Any], bool]], file: str) -> Iterator[Fault]:
    if _usual(entries, keys):
        return
    for place, entry in enumerate(entries):
        known = entry if isinstance(entry, dict) else {}
        for key, fits in keys.items():
            if not fits(known.get(key, _MAY_LACK.get(key))):
                what = f"{name}[{place}] (id {_shown(known.get('id'))}) has no valid {key}"
                without = "; heads.masks=false trains without masks" if key == "segmentation" else ""
                value = f"{key} is {_shown(known[key])}" if key in known else f"add {key}"
                number = ", but must be an integer" if key in known and key in _IDS else ""
                yield Fault(f"{name} {key}", file, what, value + number + without)
                break


def _usual(entries: list[Any], keys: Iterable[str]) -> bool:
    """Whether all entries have all keys in COCO's own form; this is ten times as fast as checking each by itself."""
    if _types(entries) != {dict}:
        return False
    try:
        return all(_USUAL[key](list(map(itemgetter(key), entries))) for key in keys)
    except KeyError:  # an entry lacks the key
        return False


def in_usual_form(name: str, entries: list[Any]) -> bool:
    """Whether all entries of the list of `name` ("images", "categories") have all their keys, in COCO's own form."""
    return _usual(entries, _LISTS[name])


def _types(values: list[Any]) -> set[type]:
    return set(map(type, values))


def _usual_numbers(values: list[Any]) -> bool:
    """Whether all are plain finite numbers."""
    return _types(values) <= {int, float} and _numbers(values)


def _shown(value: Any) -> str:
    """Return a value as text for a message; an integer may have more digits than Python prints."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return "a number of thousands of digits"


def _twice(content: Entry, file: str) -> Iterator[Fault]:
    """Yield ids that are used more than once."""
    for name in _LISTS:
        seen: set[int] = set()
        for entry in content[name]:
            if entry["id"] in seen:
                yield Fault(f"{name} twice", file, f"{name} has id {entry['id']} twice", "give each entry a unique id")
            seen.add(entry["id"])


# ------------------------------------------------------------------------------------------------------ annotations


def _reference(
    annotation: Entry, sizes: dict[int, tuple[int, int]], categories: set[int]
) -> tuple[str, str, str] | None:
    if annotation["image_id"] not in sizes:
        what = f"refers to image {annotation['image_id']}, which is not in the list of images"
        return "image", what, "add the image, or remove the annotation"
    if annotation["category_id"] not in categories:
        what = f"has category_id {annotation['category_id']}, which is not one of the {len(categories)} categories"
        return "category", what, "correct category_id, or add the category"
    return None


def _shape(annotation: Entry, sizes: dict[int, tuple[int, int]], masks: bool) -> tuple[str, str, str] | None:
    height, width = sizes[annotation["image_id"]]
    x, y, w, h = annotation["bbox"]
    if w < 0 or h < 0 or x >= width or y >= height or x + w < 0 or y + h < 0:
        what = f"has bbox {annotation['bbox']}, outside its image of {width} x {height}"
        return "bbox outside", what, "correct it; its format is [x, y, width, height]"
    if not masks:
        return None
    segmentation = annotation["segmentation"]
    if not isinstance(segmentation, dict):
        return _polygons(segmentation)
    fault = run_lengths(segmentation, height, width)
    return None if fault is None else (fault[0].partition(" of ")[0], *fault)


def _polygons(polygons: list[Any]) -> tuple[str, str, str] | None:
    if not polygons:
        remedy = "complete the polygon, or remove the annotation; heads.masks=false trains without masks"
        return "no polygon", "has an empty polygon", remedy
    for polygon in polygons:
        if not isinstance(polygon, list) or not _numbers(polygon):
            remedy = "segmentation must be a list of polygons, each [x1, y1, x2, y2, ...]"
            return "polygon", "has a polygon that is not a list of numbers", remedy
        if len(polygon) < 6 or len(polygon) % 2:
            kind = "an empty polygon" if not polygon else f"a polygon of {len(polygon)} numbers"
            return "corners", f"has {kind}", "a polygon needs at least three points, [x1, y1, x2, y2, x3, y3]"
    return None


def _numbers(polygon: list[Any]) -> bool:
    """Whether all are finite numbers; checking their sum is ten times as fast as checking each."""
    try:
        return math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        return False


def odd_box(annotation: Entry, sizes: dict[int, tuple[int, int]]) -> tuple[str, str] | None:
    """Return the kind and the description of a box that is odd but no error, as some are in COCO; None if it is not."""
    height, width = sizes[annotation["image_id"]]
    x, y, w, h = annotation["bbox"]
    if w == 0 or h == 0:
        return "no area", f"has bbox {annotation['bbox']} without area"
    if min(x, y) < -OVERHANG or x + w > width + OVERHANG or y + h > height + OVERHANG:
        return "overhang", f"has bbox {annotation['bbox']}, partly outside its image of {width} x {height}"
    return None
