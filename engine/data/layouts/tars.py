"""Images inside uncompressed tar files: an index of offsets is built once and saved, then images are read at random.

    files = tar_files([Path("ILSVRC2012_img_train.tar")], "nested")
    files.encoded(123456)        # one read at a known offset, in any process

The list of places (`Index`) is a safetensors file beside the tars, `.<name>.mimbench-index`, or in the cache directory
where that cannot be written; it is memory-mapped, so a million images cost a process no memory of its own, and made
anew when a tar's size or time of change differ. Processes that want it at the same time wait for the first.

What a tar may be:

    plain      images, wherever they lie in it: ILSVRC2012_img_val.tar
    nested     tars of images, one for each class: ILSVRC2012_img_train.tar
    samples    images followed or led by their label, `<key>.cls` or `<key>.json`: WebDataset
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader, Dataset

from mimbench.engine.data.datasets import cache_directory, unfit
from mimbench.engine.data.folders import Names, is_image, suffix
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.bar import track
from mimbench.engine.run.file_lock import file_lock

SCHEMA = 1
FEW = 8  # tars: fewer are listed without other processes
DESCRIPTORS = 64  # open at a time in a process
NO_LABEL = -1
LABEL_KEYS = ("label", "cls", "class", "class_id")  # of a sample's .json

Kind = Literal["plain", "nested", "samples"]

# N image


class Window(io.RawIOBase):
    """Part of an open file as a file of its own."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size, self.at = descriptor, start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """The position within the part."""
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position within the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        self.at = base + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` from the current position."""
        content = self.piece(self.at, min(len(buffer), max(self.size - self.at, 0)))
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)

    def piece(self, at: int, size: int) -> bytes:
        """`size` bytes starting at `at`."""
        return os.pread(self.descriptor, size, self.start + at)


@dataclass
class _Entries:
    """Images found in one tar."""

    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, name: str, start: int, size: int, label: int = NO_LABEL) -> None:
        self.names.append(name)
        self.starts.append(start)
        self.sizes.append(size)
        self.labels.append(label)


@dataclass(frozen=True)
class _Piece:
    """A tar or a tar inside it: file number `tar`; `prefix` is put before its image names."""

    tar: int
    path: Path
    start: int
    size: int
    prefix: str


class _Pieces(Dataset[tuple[int, _Entries]]):
    def __init__(self, pieces: Sequence[_Piece], samples: bool) -> None:
        self.pieces, self.samples = pieces, samples

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> tuple[int, _Entries | str]:  # type: ignore[override]
        """The images of a piece, or the fault as text (exceptions do not survive between processes)."""
        piece = self.pieces[number]
        try:
            return piece.tar, _samples(piece) if self.samples else _images(piece)
        except (tarfile.TarError, ValueError, OSError) as error:
            inner = f", inside it {piece.prefix}.tar" if piece.start else ""
            return piece.tar, f"cannot be read{inner}: {error}"


def _members(piece: _Piece) -> Iterator[tuple[Window, tarfile.TarInfo]]:
    """The files in a tar, in order; offsets count from the start of the piece."""
    descriptor = os.open(piece.path, os.O_RDONLY)
    try:
        window = Window(descriptor, piece.start, piece.size)
        with tarfile.open(fileobj=window, mode="r:") as tar:  # type: ignore[call-overload]
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if entry.isfile():
                    yield window, entry
    finally:
        os.close(descriptor)


def _images(piece: _Piece) -> _Entries:
    entries = _Entries()
    for _, entry in _members(piece):
        name = entry.name.removeprefix("./")
        if is_image(name.rpartition("/")[2]):
            entries.add(f"{piece.prefix}/{name}" if piece.prefix else name, piece.start + entry.offset_data, entry.size)
    return entries


def _samples(piece: _Piece) -> _Entries:
    """Images with their labels; a sample is the neighbouring files of one key, the name up to its first dot."""
    entries, key, image, label = _Entries(), "", None, None
    for window, entry in _members(piece):
        directory, slash, base = entry.name.removeprefix("./").rpartition("/")
        stem, _, ending = base.partition(".")
        if f"{directory}{slash}{stem}" != key:
            _add_sample(entries, key, image, label)
            key, image, label = f"{directory}{slash}{stem}", None, None
        if is_image(base):
            image = (f"{key}{suffix(base)}", piece.start + entry.offset_data, entry.size)
        elif ending in ("cls", "json"):
            label = _label(window.piece(entry.offset_data, entry.size), ending, entry.name, label)
    _add_sample(entries, key, image, label)
    return entries


def _add_sample(entries: _Entries, key: str, image: tuple[str, int, int] | None, label: int | None) -> None:
    if image is not None:
        if label is None:
            raise ValueError(
                f"sample {key} has no label: neither {key}.cls nor a number {LABEL_KEYS[0]!r} in {key}.json"
            )
        entries.add(*image, label)


def _label(content: bytes, ending: str, name: str, before: int | None) -> int | None:
    """The label in a sample's .cls or .json; `before` if there is none."""
    try:
        if ending == "cls":
            return int(content)
        said = json.loads(content)
        numbers = [said[key] for key in LABEL_KEYS if isinstance(said, dict) and isinstance(said.get(key), int)]
    except ValueError:
        raise ValueError(f"{name} holds {content[:20]!r}, not a label") from None
    return numbers[0] if numbers and before is None else before


# --------------------------------------------------------------------------------------------------------------- index


def tar_files(tars: Sequence[Path], kind: Kind, prefixes: Sequence[str] | None = None) -> TarFiles:
    """The images in `tars`, in the order of their names within each tar of plain or nested ones; samples in theirs.

    `prefixes`: a folder's name that the images of each tar are given.

    Raises:
        OSError: if a tar cannot be opened.
        UnfitError: (a ValueError) if one is damaged, or none holds an image.
    """
    about = {
        "schema": SCHEMA,
        "kind": kind,
        "tars": [[tar.name, tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars],
        "prefixes": list(prefixes or []),
    }
    beside, cached = _places(tars, kind)
    for place in (beside, cached):
        if _is_of(place, about):
            return TarFiles(place, list(tars))
    with file_lock(cached.with_suffix(".lock"), f"listing {tars[0].parent}"):
        made = next((place for place in (beside, cached) if _is_of(place, about)), None)
        if made is None:
            content = _encoded(about, *_listed(tars, kind, prefixes or [""] * len(tars)))
            made = _written(beside, cached, content)
    return TarFiles(made, list(tars))


def _written(beside: Path, cached: Path, content: bytes) -> Path:
    """Write `content` beside the tars or, if that fails, in the cache; return the path."""
    if os.access(beside.parent, os.W_OK):
        with suppress(OSError):  # some file servers report success and refuse later
            write_with(beside, lambda temporary: temporary.write_bytes(content))
            return beside
    write_with(cached, lambda temporary: temporary.write_bytes(content))
    return cached


def _places(tars: Sequence[Path], kind: Kind) -> tuple[Path, Path]:
    """Possible places of the index: beside the tars, and in the cache."""
    first = tars[0].absolute()
    names = "\0".join([kind, *(tar.name for tar in tars)])
    short = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    beside = first.parent / (f".{first.name}.mimbench-index" if len(tars) == 1 else f".{short}.mimbench-index")
    whole = hashlib.sha256(os.fsencode(first) + names.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return beside, cache_directory() / "indices" / f"{whole}.mimbench-index"


def _is_of(place: Path, about: dict[str, Any]) -> bool:
    """Whether `place` holds a readable index of these tars in their present state."""
    try:
        with safe_open(place, framework="pt") as file:
            said = json.loads((file.metadata() or {})["mimbench"])
        return {name: said[name] for name in about} == about
    except (OSError, KeyError, ValueError, TypeError, SafetensorError):
        return False


def _listed(tars: Sequence[Path], kind: Kind, prefixes: Sequence[str]) -> tuple[list[_Entries], list[_Piece]]:
    """The images of every piece and the pieces, in order; several processes list many tars."""
    pieces = [piece for number, tar in enumerate(tars) for piece in _pieces(number, tar, kind, prefixes[number])]
    workers = (os.cpu_count() or 1) if len(pieces) > FEW else 0
    loader = DataLoader(_Pieces(pieces, kind == "samples"), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    what = f"listing {tars[0].name}" if len(tars) == 1 else f"listing {len(tars)} tars in {tars[0].parent}"
    found: list[_Entries] = []
    for tar, entries in track(loader, what, len(pieces)):
        if isinstance(entries, str):
            raise unfit(tars[tar], entries, "download this file again, and check its size and checksum")
        found.append(entries if kind == "samples" else _by_name(entries))
    if not any(entries.names for entries in found):
        raise unfit(tars[0], "holds no images", "name a tar with images")
    return found, pieces


def _as_it_is(item: Any) -> Any:
    return item


def _by_name(entries: _Entries) -> _Entries:
    order = sorted(range(len(entries.names)), key=entries.names.__getitem__)
    found = _Entries()
    for place in order:
        found.add(entries.names[place], entries.starts[place], entries.sizes[place], entries.labels[place])
    return found


def _pieces(number: int, tar: Path, kind: Kind, prefix: str) -> list[_Piece]:
    whole = _Piece(number, tar, 0, tar.stat().st_size, prefix)
    if kind != "nested":
        return [whole]
    try:
        inner = [entry for _, entry in _members(whole) if suffix(entry.name) == ".tar"]
    except tarfile.TarError as error:
        raise unfit(
            tar, f"cannot be read: {error}", "download this file again, and check its size and checksum"
        ) from None
    inner.sort(key=lambda entry: entry.name)
    return [_Piece(number, tar, entry.offset_data, entry.size, Path(entry.name).stem) for entry in inner]


def _encoded(about: dict[str, Any], found: Sequence[_Entries], pieces: Sequence[_Piece]) -> bytes:
    names = [os.fsencode(name) for entries in found for name in entries.names]
    classes = sorted({piece.prefix for piece in pieces} - {""})
    for entries, piece in zip(found, pieces, strict=True):
        if piece.prefix:
            entries.labels = [classes.index(piece.prefix)] * len(entries.names)
    columns = {
        "tar": [piece.tar for piece, entries in zip(pieces, found, strict=True) for _ in entries.names],
        "start": [start for entries in found for start in entries.starts],
        "size": [size for entries in found for size in entries.sizes],
        "label": [label for entries in found for label in entries.labels],
        "ends": np.cumsum([len(name) for name in names]).tolist(),
    }
    tensors = {name: torch.tensor(column, dtype=torch.int64) for name, column in columns.items()}
    tensors["names"] = torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8)
    return save(tensors, {"mimbench": json.dumps({**about, "classes": classes})})


class TarFiles:
    """Images in tars, read through an index without unpacking.

    Attributes:
        root: the tar, or the directory of several.
        label: int64 (N,), of samples; places in `classes` where each class has a tar; else `NO_LABEL`.
        classes: names of the tars that are classes, sorted.
    """

    def __init__(self, index: Path, tars: list[Path]) -> None:
        self.index, self.tars = index, tars
        self.root = tars[0] if len(tars) == 1 else tars[0].parent
        self._map()

    def _map(self) -> None:
        with safe_open(self.index, framework="pt") as file:
            self.classes: list[str] = json.loads(file.metadata()["mimbench"])["classes"]
            columns: dict[str, NDArray[Any]] = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        self.label: NDArray[np.int64] = columns["label"]
        self._tar_N, self._start_N, self._size_N = columns["tar"], columns["start"], columns["size"]
        self._names = Names(columns["names"], columns["ends"])
        self._open: dict[int, int] = {}  # file descriptor per tar, opened by each process on first use

    def __len__(self) -> int:
        return len(self._start_N)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(index))

    def name(self, index: int) -> str:
        """The path in the tar; a tar inside a tar counts as a folder."""
        return self._names[index]

    def text(self, index: int) -> str:
        """The tar's path followed by the path inside it."""
        return f"{self.tars[int(self._tar_N[index])]}/{self._names[index]}"

    def encoded(self, index: int) -> bytearray:
        """The content of the file.

        Raises:
            OSError: if the tar cannot be read.
            UnfitError: (a ValueError) if it has become shorter.
        """
        tar, size = int(self._tar_N[index]), int(self._size_N[index])
        content = bytearray(os.pread(self._descriptor(tar), size, int(self._start_N[index])))
        if len(content) < size:
            raise unfit(self.tars[tar], "is truncated", "download this file again, and check its size and checksum")
        return content

    def _descriptor(self, tar: int) -> int:
        if tar not in self._open:
            if len(self._open) >= DESCRIPTORS:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[tar] = os.open(self.tars[tar], os.O_RDONLY)
        return self._open[tar]

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "tars": self.tars}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["index"], state["tars"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)
