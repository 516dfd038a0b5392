"""The content hash of a checkpoint: it identifies the encoder that a run starts from, independent of the file's path.

It is the sha256 of the encoder's tensors: their names, shapes and values, sorted by name. Names are canonical (those of
`load_encoder`) and values are float32, as evaluations get them. So the following files have the same hash: a training
file with optimizer and decoder, the encoder alone, the same with renamed keys, converted from .pth to safetensors, or
exported for timm, detectron2 or MAE. A copy in half precision has another hash, because its values were rounded.

For a user's function (`my_encoder.py:build`) only the source file and the function's name are hashed, not the modules
and files that it imports or reads.

Files that mimbench wrote are hashed without torch; others are opened by `weights.open_weights`. A file is read again
only if its size or modification time has changed.
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
    """Return the hash of the encoder in the file at `path`, in hexadecimal.

    Args:
        path: a file, or any other location that `checkpoints.location` accepts.
        allow_partial: as for `load_encoder`; randomly drawn weights are hashed too.
        role: the role of the file in the run. All weights are hashed of a whole detector used as "detector", of a
            "classifier", and of a "teacher" that is not an encoder known to mimbench.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line, if `load_encoder` cannot load an encoder from it.
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
    """The places of the tensors in an encoder file that mimbench wrote; None for other and for damaged files."""
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
