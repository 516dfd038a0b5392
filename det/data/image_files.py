"""Locate the images of a COCO annotation file, for the naming conventions of different export programs.

    content, files, findings = with_images(content, files)

In COCO, `file_name` is relative to the image folder. Exports may have absolute names (of another machine), names
relative to the data set's root, Windows separators, escaped characters (%20), another case, or another encoding of
accents. The search finds one rule for the images of all entries: a folder near the annotation file, and the number of
leading parts of the names to drop. The other split's folder is never used, because its images may have the same names.
Names that are not found stay unchanged and are reported as missing.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mimbench.det.data.findings import Fault
from mimbench.engine.data.coco_layouts import COCO_SPLITS, split_words
from mimbench.engine.data.datasets import CocoFiles, Finding

Entry = dict[str, Any]
NO_FILE = "add the file, or remove the image and its annotations"
TRIED = 8  # a rule must find one of so many images before it is tried on all
DRIVE = re.compile(r"^[A-Za-z]:")


def with_images(content: Any, files: CocoFiles) -> tuple[Any, CocoFiles, list[Finding]]:
    """Return `content` and `files` with each `file_name` relative to `files.images`, and a note if it was changed.

    Content that is not an annotation file, or whose images cannot be found, is returned unchanged.
    """
    names = _names(content)
    if not names:
        return content, files, []
    folder = _Folder(files.images)
    if folder.holds(names):
        return content, files, []
    plain = sum(name == folder.found(name) for name in names)
    if plain == len(names) or (rule := _rule(names, files, plain)) is None:
        return content, files, []
    images, found = rule
    pairs = zip(content["images"], found, strict=True)
    content = {**content, "images": [{**image, "file_name": name} for image, name in pairs]}
    what = f"image names do not match the files on disk (the first: {names[0]})"
    note = Finding("note", str(files.annotations), what, f"the images are read from {images}, the first as {found[0]}")
    return content, replace(files, images=images), [note]


def missing_images(images: Sequence[Entry], files: CocoFiles) -> Iterator[Fault]:
    """Yield listed images without a file."""
    if not files.images.is_dir():
        what, remedy = "does not exist", f"put the images of {files.annotations} there"
        yield Fault("folder", str(files.images), what, remedy)
        return
    folder = _Folder(files.images)
    if folder.holds([image["file_name"] for image in images]):
        return
    for image in images:
        name = image["file_name"]
        if folder.found(name) != name:
            what = f"does not exist, but is image {image['id']} of {files.annotations}"
            other = folder.with_stem_of(name)
            remedy = f"{other} exists: correct file_name" if other else NO_FILE
            yield Fault("missing", str(files.images / name), what, remedy)


def _names(content: Any) -> list[str]:
    """Return the names of all images; an empty list if one has no name."""
    images = content.get("images") if isinstance(content, dict) else None
    names = [image.get("file_name") if isinstance(image, dict) else None for image in images or []]
    return [name for name in names if name] if all(isinstance(name, str) and name for name in names) else []


def _rule(names: list[str], files: CocoFiles, plain: int) -> tuple[Path, list[str]] | None:
    """Return folder and names by the first rule that finds all images, else by the rule that finds the most.

    None if no rule finds half of them, or more than the `plain` images found at the file's names. A folder whose name
    does not indicate images is used only if no other folder has all images.
    """
    parts_of = [_parts(name) for name in names]
    best, most = None, max(plain, (len(names) - 1) // 2)
    folders, others = _folders(files)
    for folder, depth in _tried(names, parts_of, folders):
        found = _found(folder, parts_of, depth)
        count = sum(name is not None for name in found)
        if count > most:
            rest = ("/".join(parts[depth:]) for parts in parts_of)
            best, most = (folder.root, [name or left for name, left in zip(found, rest, strict=True)]), count
        if count == len(names):
            return best
    complete: dict[Path, list[str]] = {}
    for folder, depth in _tried([], parts_of, others):
        if folder.root not in complete:
            there = [name for name in _found(folder, parts_of, depth) if name is not None]
            if len(there) == len(names):
                complete[folder.root] = there
    return next(iter(complete.items())) if len(complete) == 1 else best


def _tried(
    names: Sequence[str], parts_of: Sequence[Sequence[str]], folders: Iterable[Path]
) -> Iterator[tuple[_Folder, int]]:
    """Yield folders and the number of leading parts of the names to drop; -1: all but the last."""
    if names and all(name.startswith("/") for name in names):
        common = Path(os.path.commonpath([Path(name).parent for name in names]))
        yield _Folder(common), len(common.parts) - 1
    for folder in map(_Folder, folders):
        for depth in (*range(min(len(parts) for parts in parts_of)), -1):
            yield folder, depth


def _found(folder: _Folder, parts_of: Sequence[Sequence[str]], depth: int) -> list[str | None]:
    """Return the images' names in `folder` after dropping `depth` leading parts; None for a missing file.

    All are None if two images get the same file, or if none of the first images exists.
    """
    first = [folder.found("/".join(parts[depth:])) for parts in parts_of[:TRIED]]
    if not any(first):
        return [None] * len(parts_of)
    names = first + [folder.found("/".join(parts[depth:])) for parts in parts_of[TRIED:]]
    of_name: dict[str | None, Sequence[str]] = {}
    if any(name and of_name.setdefault(name, parts) != parts for name, parts in zip(names, parts_of, strict=True)):
        return [None] * len(parts_of)
    return names


def _parts(name: str) -> list[str]:
    """Return the parts of a path with any separators, without drive, root and dots."""
    windows = "\\" in name and ("/" not in name or DRIVE.match(name))
    text = DRIVE.sub("", name.replace("\\", "/")) if windows or DRIVE.match(name) else name
    return [part for part in text.split("/") if part not in ("", ".")] or [name]


def _folders(files: CocoFiles) -> tuple[list[Path], list[Path]]:
    """Return the folders whose names indicate images, and the other folders near the annotation file.

    The first are the layout's image folder, the annotation file's folder, its parent, and folders named images or after
    the split. Folders named after another split are excluded.
    """
    mine = _split_of(files)
    beside = files.annotations.parent
    above = [beside] + ([beside.parent] if beside.name.lower() in ("annotations", *_SPLITS) else [])
    chosen = [files.images, *above]
    others: list[Path] = []
    for near in above:
        for folder in _inside(near):
            of = _split_of_folder(folder)
            within = [folder, *(_inside(folder) if folder.name.lower() in IMAGES or of == mine else [])]
            for place in within:
                if _split_of_folder(place) in (None, mine) and of in (None, mine):
                    named = place.name.lower() in IMAGES or (mine is not None and _split_of_folder(place) == mine)
                    (chosen if named else others).append(place)
    chosen = [place for place in dict.fromkeys(chosen) if place.is_dir()]
    return chosen, [place for place in dict.fromkeys(others) if place not in chosen]


_SPLITS = tuple(word for words in COCO_SPLITS.values() for word in words)
IMAGES = ("images", "image", "imgs", "img", "data", "jpegimages", "pictures", "photos", "default")
OTHER_SPLITS = {"test", "testing", "unlabeled", "unlabelled"}


def _inside(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted; empty if it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _split_of_folder(folder: Path) -> str | None:
    """Return the split in a folder's name: "train", "val", or "test" for others; None if it names no split."""
    words = set(re.findall(r"[a-z]+", folder.name.lower()))
    return split_words(folder.name) or ("test" if words & OTHER_SPLITS else None)


def _split_of(files: CocoFiles) -> str | None:
    """Return the split of the annotation file, from its name or its folder's."""
    return split_words(files.annotations.stem) or split_words(files.annotations.parent.name)


class _Folder:
    """The files below a folder; each directory is listed once instead of one system call per file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, set[str]] = {}
        self._folded: dict[str, dict[str, str | None]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def holds(self, names: Iterable[str]) -> bool:
        """Return whether all of these are files directly in the folder, which costs a tenth of asking for each."""
        return self._names("").issuperset(names)

    def found(self, name: str) -> str | None:
        """Return the relative name of the file that matches `name`; None if there is no match or more than one."""
        directory, _, base = name.rpartition("/")
        if name.startswith("/"):
            return None
        if base in self._names(directory):
            return name
        walked: list[str] = []
        for part in name.split("/"):
            actual = self._actual("/".join(walked), part)
            if actual is None:
                return None
            walked.append(actual)
        return "/".join(walked)

    def with_stem_of(self, name: str) -> str | None:
        """Return a file in the directory of `name` with the same name except for the suffix."""
        directory, _, base = name.rpartition("/")
        if directory not in self._stems:
            self._stems[directory] = {entry.rpartition(".")[0]: entry for entry in sorted(self._names(directory))}
        return self._stems[directory].get(base.rpartition(".")[0] or base)

    def _actual(self, directory: str, part: str) -> str | None:
        """Return the entry of `directory` that matches `part`."""
        if part == ".." or part in self._names(directory):
            return part
        if directory not in self._folded:
            folded: dict[str, str | None] = {}
            for entry in self._names(directory):
                folded[_folded(entry)] = None if _folded(entry) in folded else entry
            self._folded[directory] = folded
        return self._folded[directory].get(_folded(part)) or self._folded[directory].get(_folded(unquote(part)))

    def _names(self, directory: str) -> set[str]:
        if directory not in self._listed:
            try:
                self._listed[directory] = set(os.listdir(self.root / directory))  # noqa: PTH208 (only names are needed)
            except OSError:
                self._listed[directory] = set()
        return self._listed[directory]


def _folded(name: str) -> str:
    """Return a name without differences in case and accent encoding."""
    return unicodedata.normalize("NFC", name).casefold()
