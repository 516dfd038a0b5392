"""Find the annotation file and the images of a split in a COCO-style data set, in the layouts that programs write.

    annotations, folders = find(root, "val") or ...     # the file, and the folders that may hold its images
    others(root)                                        # annotation files that match no layout, for a message

Names are compared without regard to case. A file that matches none of `LAYOUTS` is found if it is the only JSON file in
the directory or in annotations/ with the split in its name, or the only one in the split's folder. No file is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# the annotation file of a split, and the folders that may hold its images; the first that exists is used
LAYOUTS = {
    "annotations/instances_{split}2017.json": ("{split}2017", "images/{split}2017"),  # COCO itself
    "annotations/instances_{split}2014.json": ("{split}2014", "images/{split}2014"),
    "annotations/instances_{split}.json": ("images/{split}", "{split}", "images"),  # as CVAT and converters write it
    "annotations/{split}.json": ("images/{split}", "{split}", "images"),
    "{split}/_annotations.coco.json": ("{split}",),  # Roboflow
    "{split}/labels.json": ("{split}/data",),  # FiftyOne
    "{split}/annotations/instances_default.json": ("{split}/images/default", "{split}/images"),  # CVAT, split by split
    "{split}/annotations/instances_{split}.json": ("{split}/images/{split}", "{split}/images"),
    "{split}/result.json": ("{split}/images", "{split}"),  # Label Studio
    "{split}/annotations.json": ("{split}/images", "{split}"),  # labelme
    "instances_{split}.json": ("images/{split}", "{split}", "images", "."),
    "{split}.json": ("images/{split}", "{split}", "images", "."),
}
COCO_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
}
OTHER_TASKS = re.compile(r"^(captions|person_keypoints|panoptic|stuff|image_info|lvis)", re.IGNORECASE)
FOLDERS = ("images/{name}", "{name}", "images", ".")
WORD = re.compile(r"[a-z]+")


def find(root: Path, split: str) -> tuple[Path, list[Path]] | None:
    """Return the annotation file of `split` in `root` and the folders that may hold its images; None without a file."""
    for pattern, folders in LAYOUTS.items():
        for name in COCO_SPLITS[split]:
            file = _regardless_of_case(root, pattern.format(split=name))
            if file is not None and file.is_file():
                return file, _places(root, [folder.format(split=name) for folder in folders])
    fitting = [file for file in _json_files(root) if split_words(file.stem) == split]
    if len(fitting) == 1:
        names = (fitting[0].stem, *COCO_SPLITS[split])
        return fitting[0], _places(root, [folder.format(name=name) for folder in FOLDERS for name in names])
    for name in COCO_SPLITS[split]:
        folder = _regardless_of_case(root, name)
        inside = list(_json_files(folder)) if folder is not None and folder.is_dir() else []
        if len(inside) == 1 and folder is not None:
            return inside[0], [place for place in (folder / "images", folder) if place.is_dir()]
    return None


def others(root: Path) -> list[str]:
    """Return JSON files that may hold annotations in `root`, its annotations/ and its folders, relative to `root`."""
    folders = [root, *(folder for folder in _entries(root) if folder.is_dir() and folder.name.lower() != "annotations")]
    files = {file for folder in folders for file in _json_files(folder)}
    return sorted(str(file.relative_to(root)) for file in files)


def split_words(name: str) -> str | None:
    """Return the split that a word of `name` indicates, "train" or "val"; None if neither or both."""
    words = set(WORD.findall(re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))
    named = [split for split, known in COCO_SPLITS.items() if words & set(known)]
    return named[0] if len(named) == 1 else None


def _json_files(folder: Path) -> Iterator[Path]:
    """Yield the JSON files that may hold instances, in `folder` and in its annotations/."""
    inner = _regardless_of_case(folder, "annotations")
    for place in (folder, inner):
        if place is not None and place.is_dir():
            for file in _entries(place):
                if file.suffix.lower() == ".json" and file.is_file() and not OTHER_TASKS.match(file.name):
                    yield file


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _places(root: Path, folders: list[str]) -> list[Path]:
    """Return those of `folders` that exist; if none does, the first."""
    found = [place for folder in folders if (place := _regardless_of_case(root, folder)) is not None and place.is_dir()]
    return found or [root / folders[0]]


def _regardless_of_case(root: Path, relative: str) -> Path | None:
    """Return `root / relative`, or the only path that differs from it just in case; None if there is none."""
    if (root / relative).exists():
        return root / relative
    place = root
    for part in Path(relative).parts:
        if (place / part).exists():
            place = place / part
            continue
        try:
            fitting = [name for name in os.listdir(place) if name.lower() == part.lower()]  # noqa: PTH208 (names alone)
        except OSError:
            return None
        if len(fitting) != 1:
            return None
        place = place / fitting[0]
    return place
