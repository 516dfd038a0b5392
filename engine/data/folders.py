"""The image files in a folder and their classes. Nothing is decoded here.

    ROOT/<class>/...         classes are numbered in the order of their names; images may be in subfolders

Files are images by the ending of their name; names that begin with a dot are ignored.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mimbench.engine.data.datasets import unfit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

KINDS_NAMED = 8  # most endings listed in a message
PILLOW_SUFFIXES = frozenset({".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2"})
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}) | PILLOW_SUFFIXES  # torchvision's first
# folders created by programs among images: NAS boxes, archives, file systems, notebooks
NO_DATA = frozenset({"@eadir", "#recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin", "__pycache__",
                     "system volume information"})  # fmt: skip
NO_IMAGES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})  # ignored without a warning


class Files(Protocol):
    """The interface of encoded images under a root: files on disk or in an archive."""

    root: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Path: ...

    def name(self, index: int) -> str:
        """Return the path below the root, as in a folder of files."""

    def text(self, index: int) -> str:
        """The path as a string."""

    def encoded(self, index: int) -> bytearray:
        """What the file holds."""


class Names:
    """Many names in one block of memory: each loading process would copy a list of a million strings."""

    def __init__(self, block: bytes | NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """`block`: the encoded names, one after another; `ends`: the end of each."""
        self._block, self._ends = block, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Return the `Names` of a list."""
        encoded = [os.fsencode(name) for name in names]
        import numpy as np

        return cls(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._block[start : self._ends[index]]))


class Paths:
    """Files on disk."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self._names = Names.of(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(index))

    def name(self, index: int) -> str:
        """The path below the root."""
        return self._names[index]

    def text(self, index: int) -> str:
        """Return the path as a string, which is faster to create and open than a `Path`."""
        return f"{self.root}/{self._names[index]}"

    def encoded(self, index: int) -> bytearray:
        """What the file holds.

        Raises:
            OSError: if it cannot be read.
        """
        return read_bytes(self.text(index))


class Selected:
    """A selection or reordering of `files`: image `i` is `files[places[i]]`."""

    def __init__(self, files: Files, places: NDArray[np.int64]) -> None:
        self.files, self.places, self.root = files, places, files.root

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Path:
        return self.files[int(self.places[index])]

    def name(self, index: int) -> str:
        """The path below the root."""
        return self.files.name(int(self.places[index]))

    def text(self, index: int) -> str:
        """The path as a string."""
        return self.files.text(int(self.places[index]))

    def encoded(self, index: int) -> bytearray:
        """What the file holds.

        Raises:
            OSError: if it cannot be read.
        """
        return self.files.encoded(int(self.places[index]))


def read_bytes(name: str) -> bytearray:
    """Return a file's bytes in a writable buffer that torch can use without a copy.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(name, "rb") as file:  # noqa: PTH123 (pathlib takes as long as decoding a small image)
        content = bytearray(os.fstat(file.fileno()).st_size)
        read = file.readinto(content)
        del content[read:]
    return content


def suffix(name: str) -> str:
    """Return the ending of a file's name, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (as above)


def class_names(directory: Path) -> list[str]:
    """Return the names of the class folders in `directory`, sorted.

    Raises:
        UnfitError: (a ValueError) if it has none.
    """
    with os.scandir(directory) as entries:
        found = list(entries)
    names = sorted(entry.name for entry in found if entry.is_dir() and is_data(entry.name))
    if not names:
        loose = sum(is_image(entry.name) for entry in found)
        what = f"has {loose} images but no class folders" if loose else "holds no images"
        raise unfit(directory, what, f"put the images of each class into a separate folder, {directory}/<class>/")
    return names


def labelled_files(directory: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the paths of the images under `directory`, and their labels as indices into `classes`.

    Raises:
        UnfitError: (a ValueError) if there are no images, or a class is not in `classes`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for name in class_names(directory):
        files = sorted(image_files(directory, name, others))
        if name not in numbers:
            if not files:
                continue
            raise unfit(directory / name, "is a class that the training split lacks", "add it there, or remove it")
        names += files
        labels += [numbers[name]] * len(files)
    if others:
        counted = ", ".join(f"{count:,} {ending}" for ending, count in sorted(others.items())[:KINDS_NAMED])
        log.warning("%s: %s files are ignored; the names of images end in %s", directory, counted, _endings())
    if not names:
        raise unfit(directory, "holds no images", f"their names must end in {_endings()}")
    return names, labels


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES))


def is_image(name: str) -> bool:
    """Return whether a file of this name counts as an image."""
    return suffix(name) in SUFFIXES and not name.startswith(".")


def is_data(folder: str) -> bool:
    """Return whether a folder of this name may hold images: it is not hidden and not created by a program."""
    return not folder.startswith(".") and folder.lower() not in NO_DATA


def image_files(root: Path, inner: str, others: Counter[str] | None = None) -> Iterator[str]:
    """Yield paths of images below `root/inner`, relative to `root`; `others` counts other files by ending."""
    prefix = f"{inner}/" if inner else ""
    with os.scandir(root / inner) as entries:
        for entry in entries:
            if entry.is_dir():
                if is_data(entry.name):
                    yield from image_files(root, prefix + entry.name, others)
            elif is_image(entry.name):
                yield prefix + entry.name
            elif others is not None and not entry.name.startswith(".") and entry.name.lower() not in NO_IMAGES:
                others[suffix(entry.name) or entry.name] += 1
