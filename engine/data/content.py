"""The fingerprint of the files that a run reads, so that other data are another run.

    fingerprint([Part("train", Path("/data/in/train")), Part("labels", Path("/data/in"), ("val.txt",))])

Equal data have equal fingerprints on every machine: names are relative, and no time is in it. What counts of a file:

| file | what counts |
|---|---|
| images in a folder | names and sizes of all; `BLOCK` bytes in the middle of up to `SAMPLED` of them, evenly spread |
| label maps (`exact`), annotations, lists | all bytes |
| archives, and whatever is larger than `LARGEST` | name, size, and `BLOCKS` evenly spread blocks |

So an image that is replaced by another with the same name and size may pass unnoticed; annotations may not.

Digests of folders are kept in the user's cache (`cache_directory()/fingerprints`), each until names, sizes or times
of its files change. In trees of more than `MANY` files only the folders' own times are compared, which change when a
file is added, removed, renamed or replaced, but not when one is overwritten in place: 1.28 million images of ImageNet
cost two thousand calls instead of a million. A lost cache costs time only. Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mimbench.engine.data.datasets import cache_directory
from mimbench.engine.data.folders import is_data, is_image, suffix
from mimbench.engine.run.atomic import write_json

SCHEMA = 1  # of fingerprints: raise it if the same files get another one
SAMPLED = 16  # images of each folder of which bytes are read
BLOCK = 4096  # bytes
BLOCKS = 8  # of an archive
LARGEST = 2**31  # bytes: larger files count by blocks
ARCHIVES = frozenset({".tar", ".zip", ".gz", ".tgz", ".safetensors", ".bin"})
MANY = 20_000  # files
FRESH = 2 * 10**9  # nanoseconds: a file changed so recently may change again without a new time


@dataclass(frozen=True)
class Part:
    """Some of the files that a run reads.

    Attributes:
        name: of the part, equal on every machine.
        folder: where the files are; a missing one counts as empty.
        files: their names below `folder`; None: all images below it.
        exact: count all bytes of images (they are label maps).
    """

    name: str
    folder: Path
    files: tuple[str, ...] | None = None
    exact: bool = False

    @property
    def is_tree(self) -> bool:
        """Whether it is a folder of images."""
        return self.files is None


class _File(NamedTuple):
    """A file and its state."""

    name: str
    path: str
    size: int
    modified: int  # nanoseconds


class _Entry(NamedTuple):
    """The digest of one folder's own files, and the state in which they were."""

    modified: int  # of the folder, in nanoseconds; 0 if it is not to be relied on
    files: int  # how many
    stamp: str  # of the files' names, sizes and times
    digest: str
    inner: list[str]  # names of its folders


def fingerprint(parts: Iterable[Part]) -> str:
    """Return 16 hex digits that are equal for the same files.

    Raises:
        OSError: if a file cannot be read.
    """
    whole = hashlib.sha256(f"mimbench data {SCHEMA}\n".encode())
    for part in parts:
        whole.update(f"{part.name}\0{_digest(part)}\n".encode())
    return whole.hexdigest()[:16]


def _digest(part: Part) -> str:
    """Return the digest of a part; only what changed since the last time is read."""
    place = _cache_file(part)
    known = _read(place)
    found = {"": _of_files(part, known.get(""))} if part.files is not None else _tree(part, known)
    if found != known:
        with suppress(OSError):  # a full disk loses the cache, not the answer
            write_json(place, {"folder": str(part.folder), "folders": {name: list(one) for name, one in found.items()}})
    whole = hashlib.sha256()
    for name in sorted(found):
        if found[name].files:
            whole.update(f"{name}\0{found[name].digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _tree(part: Part, known: dict[str, _Entry]) -> dict[str, _Entry]:
    """Return an entry for the folder and each folder in it."""
    by_folders = sum(entry.files for entry in known.values()) > MANY
    found: dict[str, _Entry] = {}
    pending = [""] if part.folder.is_dir() else []
    while pending:
        name = pending.pop()
        before = known.get(name)
        modified = (part.folder / name).stat().st_mtime_ns
        if not (by_folders and before is not None and before.modified == modified):
            before = _of_folder(part, name, modified, before)
        found[name] = before
        pending += [f"{name}/{inner}" if name else inner for inner in before.inner]
    return found


def _of_folder(part: Part, name: str, modified: int, before: _Entry | None) -> _Entry:
    """Return the entry of the folder `name` below the part's."""
    files: list[_File] = []
    inner: list[str] = []
    with os.scandir(part.folder / name) as entries:
        for entry in entries:
            if entry.is_dir():
                if is_data(entry.name):
                    inner.append(entry.name)
            elif is_image(entry.name) and entry.is_file():
                stat = entry.stat()
                files.append(_File(entry.name, entry.path, stat.st_size, stat.st_mtime_ns))
    return _entry(part, files, modified, sorted(inner), before)


def _of_files(part: Part, before: _Entry | None) -> _Entry:
    """Return the entry of a part whose files are named; those that are missing are left out."""
    files = []
    for name in part.files or ():
        path = part.folder / name
        if path.is_file():
            stat = path.stat()
            files.append(_File(name, str(path), stat.st_size, stat.st_mtime_ns))
    return _entry(part, files, 0, [], before)


def _entry(part: Part, files: list[_File], modified: int, inner: list[str], before: _Entry | None) -> _Entry:
    files.sort()
    listed = json.dumps([(file.name, file.size, file.modified) for file in files])
    stamp = hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    same = before is not None and before.stamp == stamp
    digest = before.digest if before is not None and same else _read_files(part, files)
    newest = max((file.modified for file in files), default=0)
    if time.time_ns() - max(newest, modified) < FRESH:  # it may change again within the clock's resolution
        return _Entry(0, len(files), "", digest, inner)
    return _Entry(modified, len(files), stamp, digest, inner)


def _read_files(part: Part, files: Sequence[_File]) -> str:
    """Return the digest of files, sorted by name, by the rules at the top of this file."""
    whole = hashlib.sha256()
    sampled = set(_spread(len(files), SAMPLED))
    for place, file in enumerate(files):
        whole.update(f"{file.name}\0{file.size}\0".encode("utf-8", "surrogateescape"))
        if part.is_tree and not part.exact:
            if place in sampled:
                whole.update(_blocks(file, 1))
        elif suffix(file.name) in ARCHIVES or file.size > LARGEST:
            whole.update(_blocks(file, BLOCKS))
        else:
            with open(file.path, "rb") as handle:  # noqa: PTH123 (pathlib takes as long as reading a small image)
                whole.update(hashlib.file_digest(handle, "sha256").digest())
    return whole.hexdigest()


def _blocks(file: _File, count: int) -> bytes:
    """Return `count` evenly spread blocks of a file; of one alone, the middle."""
    last = max(0, file.size - BLOCK)
    places = [last // 2] if count == 1 else [last * place // (count - 1) for place in range(count)]
    descriptor = os.open(file.path, os.O_RDONLY)
    try:
        return b"".join(os.pread(descriptor, BLOCK, place) for place in dict.fromkeys(places))
    finally:
        os.close(descriptor)


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spread numbers below `count`."""
    if count <= most:
        return list(range(count))
    return [place * (count - 1) // (most - 1) for place in range(most)]


# --------------------------------------------------------------------------------------------------------------- cache


def _cache_file(part: Part) -> Path:
    key = json.dumps([SCHEMA, str(part.folder.absolute()), part.files, part.exact])
    short = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_directory() / "fingerprints" / f"{short}.json"


def _read(place: Path) -> dict[str, _Entry]:
    """Return the entries of the last time; none if the file is missing or damaged."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        return {str(name): _Entry(*values) for name, values in content["folders"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
