"""The content hash of a checkpoint: what names the encoder that a run starts from, wherever its file lies.

It is the sha256 of the encoder's tensors: their names, shapes and values, sorted by name. Names are canonical (those of
`load_encoder`) and values are float32, as evaluations get them. So these are one encoder and have one hash: a training
file with optimizer and decoder, the same stripped, renamed by a wrapper, converted from .pth to safetensors, exported
for timm, detectron2 or MAE. A copy in half precision is another encoder, for its values were rounded.

Files that mimbench wrote are hashed without torch; others are opened as `load_encoder` opens them. A file is read once
as long as its size and time stay.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "mimbench"  # the metadata key of our files; its value is `checkpoint.EncoderInfo` as JSON
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file by its format

Role = Literal["encoder", "detector", "teacher", "classifier"]
Entry = tuple[str, tuple[int, ...], bytes]  # name, shape, float32 values in little-endian order


class Place(NamedTuple):
    """Where a file holds a tensor."""

    name: str
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int


def content_hash(path: str | Path, *, allow_partial: bool = False, role: Role = "encoder") -> str:
    """The hash of the encoder in the file at `path`, in hexadecimal.

    Args:
        path: a file, or what else `checkpoints.opening.parse_location` takes.
        allow_partial: as for `load_encoder`; what is missing counts as it is drawn.
        role: what a run takes the file for. A whole detector taken as "detector" is hashed with all its weights, and so
            are a "classifier", and what is no encoder to us when taken as "teacher".

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: in one line, if it holds no encoder that `load_encoder` would load.
    """
    file, copy = Path(path), None
    if not file.is_file() and is_location(str(path)):
        from mimbench.backbones.checkpoints.opening import parse_location  # imports torch

        file, options = parse_location(str(path))
        copy = options.get("copy")
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {file} does not exist")
    stat = file.stat()
    return _hash(file.absolute(), copy, allow_partial, role, stat.st_size, stat.st_mtime_ns)


def is_location(text: str) -> bool:
    """Whether `text` may be more than a path: a URL, or a file with options."""
    return "?" in text or ":/" in text


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """The hash of an encoder's `tensors` by their canonical names; the precision they are held in does not count."""
    arrays = ((name, tensors[name].detach().cpu().float().contiguous().numpy()) for name in sorted(tensors))
    return _digest((name, array.shape, array.tobytes()) for name, array in arrays)


@lru_cache(maxsize=1024)
def _hash(file: Path, copy: str | None, allow_partial: bool, role: Role, _size: int, _modified: int) -> str:
    if role == "classifier":
        from mimbench.backbones.classifier_file import classifier_tensors  # imports torch

        return tensors_hash(classifier_tensors(file))
    held = _held_by_ours(file)
    if held is not None:
        return _digest(_read(file, held))
    from mimbench.backbones.checkpoint import load_encoder  # imports torch
    from mimbench.backbones.checkpoints.detector import detector_in, relative_positions_in
    from mimbench.backbones.checkpoints.opening import open_checkpoint

    detector = detector_in(file, copy) if role == "detector" else None
    if detector is not None:
        return tensors_hash(detector)
    relative = (relative_positions_in(file, copy) if role == "detector" else None) or {}
    try:
        state, _ = load_encoder(file, allow_partial=allow_partial or bool(relative), copy=copy)
    except ValueError:
        if role != "teacher":
            raise
        return tensors_hash(open_checkpoint(file, copy).weights)
    return tensors_hash({**state, **relative})


def _digest(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256(b"mimbench encoder\n")
    for name, shape, values in entries:
        digest.update(f"{name} {list(shape)}\n".encode())
        digest.update(values)
    return digest.hexdigest()


def _held_by_ours(file: Path) -> list[Place] | None:
    """Where a safetensors file that mimbench wrote holds its tensors; None of any other, and of one that is damaged."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if length <= LONGEST_HEADER else b""
    try:
        header = json.loads(text)
        if METADATA not in header.pop("__metadata__"):
            return None
        places = [_place(name, entry, start=8 + length) for name, entry in sorted(header.items())]
        whole = file.stat().st_size == max(place.end for place in places)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return places if whole else None


def _place(name: str, entry: Mapping[str, Any], start: int) -> Place:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(side) for side in entry["shape"])
    if entry["dtype"] != "F32" or end - begin != 4 * math.prod(shape):
        raise ValueError(f"{name} is not float32")
    return Place(name, shape, begin, end)


def _read(file: Path, places: Iterable[Place]) -> Iterator[Entry]:
    with file.open("rb") as handle:
        for place in places:
            handle.seek(place.begin)
            yield place.name, place.shape, handle.read(place.end - place.begin)
