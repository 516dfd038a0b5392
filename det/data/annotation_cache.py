"""Keep the arrays of a checked annotation file beside it: COCO's 250 MB of JSON are parsed and checked once.

    content = content_of(file)                  # None of a small file, which is not worth it
    kept = read_kept(file, content, options)    # None: nothing is kept, it is damaged, or the file has changed
    keep(file, content, options, Kept(...))

The kept file is `.NAME.SHORT.mimbench-annotations` beside the annotation file or, where that folder cannot be written,
in the cache (`datasets.cache_directory`). It has the format of safetensors, so reading it runs no code. It counts only
if it was made from a file of the same content (SHA-256) by the same `SCHEMA`, and its own checksum fits; anything else
is replaced. Only files of `LEAST` bytes and more are kept. Whether the images exist is not kept.

safetensors' own `save_file` is not used: other users of a data set could not read its files (mode 600 since 0.6), and
it leaves a file of another name if it is killed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mimbench.backbones.checkpoints.safetensors_header import header_bytes
from mimbench.engine.data.datasets import cache_directory
from mimbench.engine.run.atomic import sweep_file, write_with

SCHEMA = 2  # raise it when the arrays of `coco.CocoSplit` or the checks of annotations change
LEAST = 8 * 2**20  # bytes of an annotation file; smaller ones are read in less than a second
ENDING = ".mimbench-annotations"
OLD = 3600.0  # seconds after which a temporary file's writer is not alive
KINDS = {"int64": "I64", "int32": "I32", "float64": "F64", "bool": "BOOL", "uint8": "U8"}  # numpy's, safetensors'
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Kept:
    """The content of a checked annotation file."""

    arrays: Arrays  # numbers and bytes only
    names: tuple[str, ...]  # of the images' files, in the order of the arrays
    categories: tuple[tuple[int, str], ...]  # ids and names
    notes: tuple[tuple[str, str, str], ...]  # severity, what and remedy of each `datasets.Finding` about the file


@dataclass(frozen=True)
class Content:
    """What a file holds: its SHA-256, and the state of the file before it was read, by which a change is noticed."""

    digest: str
    state: tuple[int, ...]


def content_of(file: Path) -> Content | None:
    """Return the content of a file; None if it is smaller than `LEAST` or does not exist.

    Raises:
        OSError: if it cannot be read.
    """
    if not file.is_file() or file.stat().st_size < LEAST:
        return None
    with file.open("rb") as handle:
        state = _state(handle.fileno())
        return Content(hashlib.file_digest(handle, "sha256").hexdigest(), state)


def _state(descriptor: int) -> tuple[int, ...]:
    """Return what differs after any change of an open file; opening it makes NFS ask the server."""
    found = os.fstat(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _unchanged(file: Path, content: Content) -> bool:
    with file.open("rb") as handle:
        return _state(handle.fileno()) == content.state


def read_kept(file: Path, content: Content | None, options: Mapping[str, Any]) -> Kept | None:
    """Return what is kept of the annotation file with this content read with `options`; None if nothing valid is."""
    if content is None:
        return None
    there = (place for place in _places(file, options) if place.is_file())
    return next((kept for place in there if (kept := _read(place, content.digest, options)) is not None), None)


def keep(file: Path, content: Content | None, options: Mapping[str, Any], kept: Kept) -> None:
    """Keep what the file holds; nothing is kept where no place can be written, or if it has changed meanwhile."""
    unfit = any(array.dtype == object for array in kept.arrays.values())  # integers beyond 63 bits
    if content is None or unfit or not _unchanged(file, content):
        return
    arrays = {name: np.ascontiguousarray(array) for name, array in kept.arrays.items()}
    names = [name.encode("utf-8", "surrogatepass") for name in kept.names]
    arrays["_names"] = np.frombuffer(b"".join(names), dtype=np.uint8)
    arrays["_lengths"] = np.array([len(name) for name in names], dtype=np.int64)
    about = {
        **_about(content.digest, options),
        "checksum": _checksum(arrays, [kept.categories, kept.notes]),
        "categories": kept.categories,
        "notes": kept.notes,
    }
    tensors = {name: (KINDS[one.dtype.name], one.shape, one.nbytes) for name, one in _in_order(arrays).items()}
    header = header_bytes(tensors, {"mimbench": json.dumps(about)})
    beside, cached = _places(file, options)
    for place in (beside, cached):
        if place is cached or os.access(place.parent, os.W_OK):
            with suppress(OSError):  # a full or read-only disk: the next place, or none
                sweep_file(place, OLD)
                write_with(place, lambda temporary: _write(temporary, header, arrays))
                return


def _in_order(arrays: Arrays) -> Arrays:
    """Return the arrays as the file has them: the largest numbers first, so that all are aligned."""
    return dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))


def _write(file: Path, header: bytes, arrays: Arrays) -> None:
    with file.open("wb") as handle:
        handle.write(header)
        for array in _in_order(arrays).values():
            handle.write(array.reshape(-1).view(np.uint8).data)


def _read(place: Path, content: str, options: Mapping[str, Any]) -> Kept | None:
    try:
        with safe_open(place, framework="numpy") as opened:
            about = json.loads((opened.metadata() or {})["mimbench"])
            wanted = _about(content, options)
            if {name: about[name] for name in wanted} != wanted:
                return None
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        if about["checksum"] != _checksum(arrays, [about["categories"], about["notes"]]):
            return None
        block, ends = arrays.pop("_names").tobytes(), np.cumsum(arrays.pop("_lengths")).tolist()
        pieces = (block[start:end] for start, end in itertools.pairwise([0, *ends]))
        names = [piece.decode("utf-8", "surrogatepass") for piece in pieces]
        categories = tuple((int(number), str(name)) for number, name in about["categories"])
        notes = tuple((str(severity), str(what), str(remedy)) for severity, what, remedy in about["notes"])
        return Kept(arrays, tuple(names), categories, notes)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, SafetensorError):
        return None


def _about(content: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, "content": content, "options": dict(options)}


def _checksum(arrays: Arrays, said: object) -> int:
    """Return the CRC-32 of all arrays, by name, and of what JSON says beside them."""
    found = zlib.crc32(json.dumps(said).encode())
    for name in sorted(arrays):
        array = arrays[name]
        found = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), found)
        found = zlib.crc32(array.reshape(-1).view(np.uint8).data, found)
    return found


def _places(file: Path, options: Mapping[str, Any]) -> tuple[Path, Path]:
    """Return where the content is kept: beside the file, or in the cache."""
    told = json.dumps(options, sort_keys=True)
    short = hashlib.sha256(told.encode()).hexdigest()[:8]
    whole = hashlib.sha256(os.fsencode(file.absolute()) + told.encode()).hexdigest()[:16]
    return file.with_name(f".{file.name}.{short}{ENDING}"), cache_directory() / "annotations" / f"{whole}{ENDING}"
