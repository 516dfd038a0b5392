"""CIFAR-10 and CIFAR-100 as published: Python's pickles (read as data, pickles.py) or the binary version.

    ROOT/cifar-10-batches-py/data_batch_1 ... test_batch, batches.meta
    ROOT/cifar-100-python/train, test, meta          fine labels, 100 classes
    ROOT/cifar-10-batches-bin/data_batch_1.bin ...   and ROOT/cifar-100-binary/train.bin
    ROOT/cifar-10-python.tar.gz                      any of these still packed

ROOT may also be the inner directory. The test images are the validation split; images keep the order of the files.
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.engine.data.datasets import Split, unfit
from mimbench.engine.data.layouts.listing import Listing
from mimbench.engine.data.layouts.pickles import load

SIDE = 32
PLANES = 3 * SIDE * SIDE

# N image of a file


@dataclass(frozen=True)
class _Version:
    """One published form of CIFAR-10 or CIFAR-100."""

    title: str
    directory: str
    archive: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    label: str  # key of the labels in a pickle; "" for the binary version
    names: str  # key of the classes' names
    label_bytes: int = 1  # before each image of the binary version; the last is the label

    def files(self, split: Split) -> tuple[str, ...]:
        return self.train if split == "train" else self.val


_TEN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEN_BIN, _FINE = tuple(f"{name}.bin" for name in _TEN), "fine_label_names"
VERSIONS = (
    _Version("CIFAR-10", "cifar-10-batches-py", "cifar-10-python.tar.gz", _TEN, ("test_batch",), "batches.meta",
             "labels", "label_names"),
    _Version("CIFAR-100", "cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",), "meta",
             "fine_labels", _FINE),
    _Version("CIFAR-10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", _TEN_BIN, ("test_batch.bin",),
             "batches.meta.txt", "", ""),
    _Version("CIFAR-100", "cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), ("test.bin",),
             f"{_FINE}.txt", "", "", 2),
)  # fmt: skip

Reader = Callable[[str], bytes]


class _Rows:
    """Images stored as raw pixels, each returned as a PPM file."""

    def __init__(self, root: Path, names: tuple[str, ...], counts: list[int], pixels: Tensor) -> None:
        self.root, self.names, self.pixels = root, names, pixels
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(index))

    def name(self, index: int) -> str:
        """The file and the image's number in it."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self.names[file]}/{index - (int(self._ends[file - 1]) if file else 0):05}.ppm"

    def text(self, index: int) -> str:
        """The path as a string."""
        return f"{self.root}/{self.name(index)}"

    def encoded(self, index: int) -> bytearray:
        """The image as a PPM file."""
        pixels_HWC = self.pixels[index].permute(1, 2, 0).contiguous().numpy()
        return bytearray(f"P6 {SIDE} {SIDE} 255\n".encode() + pixels_HWC.tobytes())


def found(root: Path) -> bool:
    """Whether CIFAR is at `root`."""
    return bool(_places(root))


def _places(root: Path) -> list[tuple[_Version, Path]]:
    """The versions at `root` with their directories or archives."""
    inner = [(version, root / version.directory) for version in VERSIONS] + [(version, root) for version in VERSIONS]
    there = [(version, place) for version, place in inner if _holds(place, version)]
    archives = [(version, root / version.archive) for version in VERSIONS]
    return there or [(version, place) for version, place in archives if place.is_file()]


def _holds(place: Path, version: _Version) -> bool:
    """Whether a version is unpacked in `place`; a file called `meta` alone does not prove it."""
    data = any((place / name).is_file() for name in (*version.train, *version.val))
    return data and (place / version.meta).is_file()


def open_listing(root: Path, split: Split) -> Listing:
    """The images of `split`, all in memory.

    Raises:
        FileNotFoundError: if it is not there.
        UnfitError: (a ValueError) if a file of it is damaged or missing, or both CIFARs are at `root`.
    """
    places = _places(root)
    if len({version.title for version, _ in places}) > 1:
        raise unfit(root, "holds both CIFAR-10 and CIFAR-100", f"name one of them, as {places[0][1]}")
    version, place = places[0]
    _require_whole(version, place, split)
    read = _from_directory(place) if place.is_dir() else _from_archive(place, version)
    parts = [_part(version, place / name, read(name)) for name in version.files(split)]
    data_N3HW = np.concatenate([part[0] for part in parts])
    pixels = torch.from_numpy(np.ascontiguousarray(data_N3HW.transpose(0, 2, 3, 1))).permute(0, 3, 1, 2)
    labels = torch.tensor(np.concatenate([part[1] for part in parts]), dtype=torch.int64)
    classes = _classes(version, place / version.meta, read(version.meta))
    if labels.numel() and int(labels.max()) >= len(classes):
        raise unfit(place / version.meta, f"names only {len(classes)} classes", "download it again")
    files = _Rows(place, version.files(split), [len(part[1]) for part in parts], pixels)
    return Listing(files, labels, classes, f"{version.title}, {version.directory}", pixels=pixels)


def _require_whole(version: _Version, place: Path, split: Split) -> None:
    """Check that an unpacked split has all its files.

    Raises:
        FileNotFoundError: if it has none.
        UnfitError: (a ValueError) naming the first that is missing.
    """
    missing = [place / name for name in version.files(split) if not (place / name).is_file()]
    if place.is_file() or not missing:
        return
    if len(missing) == len(version.files(split)):
        raise FileNotFoundError(f"{missing[0]} does not exist; unpack {version.archive} again")
    raise unfit(missing[0], "is missing", f"unpack {version.archive} again")


def _from_directory(place: Path) -> Reader:
    return lambda name: (place / name).read_bytes()


def _from_archive(place: Path, version: _Version) -> Reader:
    """Reads the files of a packed version, all into memory at once."""
    wanted, content = {*version.train, *version.val, version.meta}, {}
    try:
        with tarfile.open(place) as tar:
            for entry in tar:
                base = entry.name.rpartition("/")[2]
                if base in wanted and (handle := tar.extractfile(entry)) is not None:
                    content[base] = handle.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise unfit(place, f"cannot be unpacked ({error})", "download this file again") from None
    if missing := sorted(wanted - content.keys()):
        raise unfit(place, f"lacks {missing[0]}", "download this file again")
    return content.__getitem__


def _part(version: _Version, file: Path, content: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Images (N, 3, 32, 32) and labels of one file."""
    if not version.label:
        row = PLANES + version.label_bytes
        if not content or len(content) % row:
            raise unfit(
                file,
                f"is truncated: {len(content)} bytes are no multiple of {row} per image",
                "download this file again",
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, row)
        return rows[:, -PLANES:].reshape(-1, 3, SIDE, SIDE), rows[:, version.label_bytes - 1].tolist()
    try:
        said = load(content)
        data, labels = said["data"], said[version.label]
        if len(data) != len(labels):
            raise ValueError(f"{len(data)} images with {len(labels)} labels")
        return np.asarray(data, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE), [int(label) for label in labels]
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError) as error:
        raise unfit(file, f"is not a {version.title} file ({error})", "download this file again") from None


def _classes(version: _Version, file: Path, content: bytes) -> list[str]:
    if not version.label:
        return content.decode("utf-8", "replace").split()
    try:
        return [str(name) for name in load(content)[version.names]]
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        raise unfit(file, f"is not a {version.title} file ({error})", "download this file again") from None
