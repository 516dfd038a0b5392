"""Where the images of a COCO annotation file are, whatever the program that wrote their names.

    content, files, findings = with_images(content, files)

`file_name` is relative to the image folder in COCO. Exports have absolute names (of the machine they were made on),
names from the root of the data set, Windows separators, escaped characters (%20), another case, or accents encoded
otherwise. One rule is looked for that finds the images of all entries: a folder near the annotation file, and how many
leading parts of the names to leave out. The folder of the other split is never taken, for its images may have the same
names. What cannot be found stays as it is and is reported as missing.
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
TRIED = 8  # images of which a rule must find one before all are asked for
DRIVE = re.compile(r"^[A-Za-z]:")


def with_images(content: Any, files: CocoFiles) -> tuple[Any, CocoFiles, list[Finding]]:
    """`content` and `files` such that each `file_name` is relative to `files.images`, and a note if that was not so.

    Content that is no annotation file, or whose images cannot be found, is returned as it is.
    """
    names = _names(content)
    if not names:
        return content, files, []
    folder = _Folder(files.images)
    plain = sum(name == folder.found(name) for name in names)
    if plain == len(names) or (rule := _rule(names, files, plain)) is None:
        return content, files, []
    images, found = rule
    pairs = zip(content["images"], found, strict=True)
    content = {**content, "images": [{**image, "file_name": name} for image, name in pairs]}
    what = f"names its images otherwise than they lie on disk (the first: {names[0]})"
    note = Finding("note", str(files.annotations), what, f"they are read from {images}, this one as {found[0]}")
    return content, replace(files, images=images), [note]


def missing_images(images: Sequence[Entry], files: CocoFiles) -> Iterator[Fault]:
    """Images in the list without a file."""
    if not files.images.is_dir():
        what, remedy = "does not exist", f"{files.annotations} lists images that belong there"
        yield Fault("folder", str(files.images), what, remedy)
        return
    folder = _Folder(files.images)
    for image in images:
        name = image["file_name"]
        if folder.found(name) != name:
            what = f"does not exist, but image {image['id']} of {files.annotations} names it"
            other = folder.with_stem_of(name)
            remedy = f"{other} is there: correct file_name" if other else NO_FILE
            yield Fault("missing", str(files.images / name), what, remedy)


def _names(content: Any) -> list[str]:
    """The names of all images; none if one of them has none."""
    images = content.get("images") if isinstance(content, dict) else None
    names = [image.get("file_name") if isinstance(image, dict) else None for image in images or []]
    return [name for name in names if name] if all(isinstance(name, str) and name for name in names) else []


def _rule(names: list[str], files: CocoFiles, plain: int) -> tuple[Path, list[str]] | None:
    """The folder and the names in it by the first rule that finds all images, or by the one that finds the most.

    None if none finds half of them, or more than the `plain` ones that are where the file says. A folder whose name
    does not say that it holds images is taken if it is the only one that holds all.
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
    """Folders, and how many leading parts of the names to leave out; -1: all but the last."""
    if names and all(name.startswith("/") for name in names):
        common = Path(os.path.commonpath([Path(name).parent for name in names]))
        yield _Folder(common), len(common.parts) - 1
    for folder in map(_Folder, folders):
        for depth in (*range(min(len(parts) for parts in parts_of)), -1):
            yield folder, depth


def _found(folder: _Folder, parts_of: Sequence[Sequence[str]], depth: int) -> list[str | None]:
    """The names in `folder` of images once `depth` leading parts are left out; None for one that is not there.

    None for all if two images become one, or if none of the first is there.
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
    """The parts of a path, whichever separators it has, without a drive, a root or dots."""
    windows = "\\" in name and ("/" not in name or DRIVE.match(name))
    text = DRIVE.sub("", name.replace("\\", "/")) if windows or DRIVE.match(name) else name
    return [part for part in text.split("/") if part not in ("", ".")] or [name]


def _folders(files: CocoFiles) -> tuple[list[Path], list[Path]]:
    """Where images may be by the names of the folders, and the other folders near the annotation file.

    The first are the folder of the layout, that of the annotation file, the one above, and those called images or by
    the split. Folders that speak of another split are in neither.
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
    """Folders in `folder`, sorted; none if it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _split_of_folder(folder: Path) -> str | None:
    """The split that a folder's name speaks of: "train", "val", or "test" for what is neither; None if of none."""
    words = set(re.findall(r"[a-z]+", folder.name.lower()))
    return split_words(folder.name) or ("test" if words & OTHER_SPLITS else None)


def _split_of(files: CocoFiles) -> str | None:
    """The split that the annotation file is of, by its name or its folder's."""
    return split_words(files.annotations.stem) or split_words(files.annotations.parent.name)


class _Folder:
    """The files below a folder; each directory is read once, not a question asked for each file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, set[str]] = {}
        self._folded: dict[str, dict[str, str | None]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def found(self, name: str) -> str | None:
        """The name, relative to the folder, of the file that `name` means; None if there is none, or more than one."""
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
        """A file in the directory of `name` that is called so but for its ending."""
        directory, _, base = name.rpartition("/")
        if directory not in self._stems:
            self._stems[directory] = {entry.rpartition(".")[0]: entry for entry in sorted(self._names(directory))}
        return self._stems[directory].get(base.rpartition(".")[0] or base)

    def _actual(self, directory: str, part: str) -> str | None:
        """The entry of `directory` that `part` means."""
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
                self._listed[directory] = set(os.listdir(self.root / directory))  # noqa: PTH208 (names are all)
            except OSError:
                self._listed[directory] = set()
        return self._listed[directory]


def _folded(name: str) -> str:
    """A name regardless of case and of how accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()
