"""Which files a folder of images holds, and of which class each is. Nothing is decoded here.

    ROOT/train/<class>/...  ROOT/val/<class>/...     ImageNet; classes are numbered by ROOT/train, sorted by name
    ROOT/<class>/...                                 no splits: both splits are all images

Images are told by their names' endings; names that begin with a dot are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.datasets import Split, image_root, unfit

PILLOW_SUFFIXES = frozenset({".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".gif"})  # the others torchvision decodes
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"}) | PILLOW_SUFFIXES


class Files(Protocol):
    """Encoded images under a root, wherever they are kept."""

    root: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Path: ...

    def text(self, index: int) -> str:
        """The path as a string."""

    def encoded(self, index: int) -> bytearray:
        """What the file holds."""


class Paths:
    """Many paths in one block of memory: a list of a million strings would be copied by every loading process."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.root = root
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(index))

    def name(self, index: int) -> str:
        """The path below the root."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])

    def text(self, index: int) -> str:
        """The path as a string, which is made and opened faster."""
        return f"{self.root}/{self.name(index)}"

    def encoded(self, index: int) -> bytearray:
        """What the file holds.

        Raises:
            OSError: if it cannot be read.
        """
        return read_bytes(self.text(index))


def read_bytes(name: str) -> bytearray:
    """All of a file, where it can be changed and handed to torch without another copy.

    Raises:
        OSError: if it cannot be read.
    """
    with open(name, "rb") as file:  # noqa: PTH123 (pathlib takes as long as decoding a small image)
        content = bytearray(os.fstat(file.fileno()).st_size)
        read = file.readinto(content)
        del content[read:]
    return content


def suffix(name: str) -> str:
    """The ending of a file's name, in small letters."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (as above)


def has_split(root: Path, split: Split) -> bool:
    """Whether the data set at `root` has a folder for `split`."""
    return (image_root(root) / split).is_dir()


def split_directory(root: Path, split: Split) -> tuple[Path, bool]:
    """The folder that holds the classes of `split`, and whether the data set has no splits.

    Raises:
        FileNotFoundError: if `root` is not there, or has the other split only.
    """
    inner = image_root(root)
    if not inner.is_dir():
        raise FileNotFoundError(f"{root} does not exist; name a directory with train/ and val/, folders of classes")
    if (inner / split).is_dir():
        return inner / split, False
    other: Split = "val" if split == "train" else "train"
    if (inner / other).is_dir():
        raise FileNotFoundError(f"{inner} has {other}/ but no {split}/; add the {split} images, in class folders")
    return inner, True


def class_names(directory: Path) -> list[str]:
    """The class folders in `directory`, sorted.

    Raises:
        UnfitError: (a ValueError) if there are none.
    """
    with os.scandir(directory) as entries:
        found = list(entries)
    names = sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        loose = sum(_is_image(entry.name) for entry in found)
        what = f"has {loose} images but no class folders" if loose else "holds no images"
        raise unfit(directory, what, f"put the images of each class into a folder of their own, {directory}/<class>/")
    return names


def labelled_files(directory: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths under `directory` of its images, and their labels as places in `classes`.

    Raises:
        UnfitError: (a ValueError) if there are no images, or a class that is not one of `classes`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    for name in class_names(directory):
        if name not in numbers:
            raise unfit(directory / name, "is a class the training split does not have", "add it there, or remove it")
        files = sorted(_image_files(directory, name))
        names += files
        labels += [numbers[name]] * len(files)
    if not names:
        raise unfit(directory, "holds no images", f"they end in {', '.join(sorted(SUFFIXES))}")
    return names, labels


def _is_image(name: str) -> bool:
    return suffix(name) in SUFFIXES and not name.startswith(".")


def _image_files(root: Path, inner: str) -> Iterator[str]:
    """Paths of images below `root/inner`, relative to `root`."""
    with os.scandir(root / inner) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _image_files(root, f"{inner}/{entry.name}")
            elif _is_image(entry.name):
                yield f"{inner}/{entry.name}"
