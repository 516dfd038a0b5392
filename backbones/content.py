"""The content hash of a checkpoint: what names the encoder that a run starts from, wherever its file lies.

It is the sha256 of the encoder's tensors: their names, shapes and values, sorted by name. Names are canonical (those of
`load_encoder`) and values are float32, as evaluations get them. So these are one encoder and have one hash: a training
file with optimizer and decoder, the same stripped, renamed by a wrapper, converted from .pth to safetensors, exported
for timm, detectron2 or MAE. A copy in half precision is another encoder, for its values were rounded.

Of a user's own function (`my_encoder.py:build`) the source file and the function's name are hashed, and nothing that
the file imports or reads.

Files that mimbench wrote are hashed without torch; others are opened as `weights.open_weights` opens them. A file is
read once as long as its size and time stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from mimbench.backbones.checkpoints.digest import Entry, digest, tensors_hash
from mimbench.backbones.checkpoints.location import Role, UserCode, is_location, parse_location, user_code
from mimbench.backbones.checkpoints.safetensors_header import METADATA, Place, read_header

__all__ = ["Role", "content_hash", "is_location", "tensors_hash"]


def content_hash(path: str | Path, *, allow_partial: bool = False, role: Role = "encoder") -> str:
    """The hash of the encoder in the file at `path`, in hexadecimal.

    Args:
        path: a file, or what else `checkpoints.location` takes.
        allow_partial: as for `load_encoder`; what is missing counts as it is drawn.
        role: what a run takes the file for. A whole detector taken as "detector" is hashed with all its weights, and so
            are a "classifier", and what is no encoder to us when taken as "teacher".

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: in one line, if it holds no encoder that `load_encoder` would load.
    """
    if (code := user_code(path)) is not None:
        return _code_hash(code)
    file, copy = Path(path), None
    if not file.is_file() and is_location(str(path)):
        file, options = parse_location(str(path))
        copy = options.get("copy")
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {file} does not exist")
    stat = file.stat()
    return _hash(file.absolute(), copy, allow_partial, role, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _code_hash(code: UserCode) -> str:
    if not code.file.is_file():
        raise FileNotFoundError(f"{code.file}, the file of checkpoint={code.name}, does not exist")
    return hashlib.sha256(f"mimbench user code {code.function}\n".encode() + code.file.read_bytes()).hexdigest()


@lru_cache(maxsize=1024)
def _hash(
    file: Path, copy: str | None, allow_partial: bool, role: Role, _size: int, _modified: int, _inode: int
) -> str:
    if role != "classifier" and (places := _encoder_of_ours(file)) is not None:
        return digest(_entries(file, places))
    from mimbench.backbones.weights import open_weights  # imports torch

    return open_weights(file, role, allow_partial=allow_partial, copy=copy).content_hash


def _encoder_of_ours(file: Path) -> tuple[Place, ...] | None:
    """Where an encoder's file that mimbench wrote holds its tensors; None of any other, and of one that is damaged."""
    try:
        header = read_header(file)
    except ValueError:
        return None
    whole = bool(header.places) and header.size == file.stat().st_size
    return header.places if METADATA in header.metadata and whole and all(map(_is_float32, header.places)) else None


def _is_float32(place: Place) -> bool:
    return place.dtype == "F32" and place.end - place.begin == 4 * place.numbers


def _entries(file: Path, places: Iterable[Place]) -> Iterator[Entry]:
    with file.open("rb") as handle:
        for place in places:
            handle.seek(place.begin)
            yield place.name, place.shape, handle.read(place.end - place.begin)
