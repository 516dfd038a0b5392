"""The content hash of a checkpoint: it identifies the encoder that a run starts from, independent of the file's path.

It covers the encoder's tensors (names, shapes and values, sorted by name) and what else changes its features: heads,
patches and grid, the statistics of its images, activation, eps and its other traits, how its positions are resized
(`checkpoints.info.meaning`). Names are canonical (those of `load_encoder`) and values are float32, as evaluations get
them. So these are one encoder and have one hash: a training file with optimizer and decoder, the same stripped, renamed
by a wrapper, converted from .pth to safetensors, exported for timm, detectron2, MAE or transformers. A copy in half
precision is another encoder, because its values were rounded; and so is a file of the same tensors that says another
mean.

Until schema 2 of run identities only the tensors counted: `content_hashes` also gives that hash, for old results.

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

from mimbench.backbones.checkpoints.digest import Entry, Hashes, digest, tensors_hash
from mimbench.backbones.checkpoints.file_kind import shards_of
from mimbench.backbones.checkpoints.huggingface.folder import version_beside, weights_file
from mimbench.backbones.checkpoints.info import EncoderInfo, from_json, meaning
from mimbench.backbones.checkpoints.location import Role, UserCode, is_location, parse_location, user_code
from mimbench.backbones.checkpoints.safetensors_header import METADATA, Place, read_header

__all__ = ["Hashes", "Role", "content_hash", "content_hashes", "is_location", "tensors_hash"]


def content_hash(path: str | Path, *, allow_partial: bool = False, role: Role = "encoder") -> str:
    """Return the hash of the encoder in the file at `path`, in hexadecimal.

    Args:
        path: a file, a folder written by transformers, or any other location that `checkpoints.location` accepts.
        allow_partial: as for `load_encoder`; randomly drawn weights are hashed too.
        role: the role of the file in the run. All weights are hashed of a whole detector used as "detector", of a
            "classifier", and of a "teacher" that is not an encoder known to mimbench.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line, if `load_encoder` cannot load an encoder from it.
    """
    return content_hashes(path, allow_partial=allow_partial, role=role).content


def content_hashes(path: str | Path, *, allow_partial: bool = False, role: Role = "encoder") -> Hashes:
    """Return the content hash of a file, and that of its tensors alone; arguments and errors as for `content_hash`."""
    if (code := user_code(path)) is not None:
        return Hashes.of(_code_hash(code), None)
    file, options = Path(path), dict[str, str]()
    if not file.is_file() and is_location(str(path)):
        file, options = parse_location(str(path))
    file = weights_file(file)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {file} {'holds no weights' if file.is_dir() else 'does not exist'}")
    said = "&".join(f"{key}={value}" for key, value in options.items())
    location = f"{file.absolute()}?{said}" if said else str(file.absolute())
    return _hashes(file.absolute(), location, allow_partial, role, version(file))


def version(file: Path) -> tuple[int, ...]:
    """Size, time and inode of a file, and size and time of the JSON files beside it, which may describe it.

    An index changes with the files that it names.
    """
    stat = file.stat()
    parts = [part.stat() for part in shards_of(file)] if file.suffix == ".json" else []
    numbers = (*version_beside(file), *((part.st_size, part.st_mtime_ns) for part in parts))
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, *(number for pair in numbers for number in pair)


def _code_hash(code: UserCode) -> str:
    if not code.file.is_file():
        raise FileNotFoundError(f"{code.file}, the file of checkpoint={code.name}, does not exist")
    return hashlib.sha256(f"mimbench user code {code.function}\n".encode() + code.file.read_bytes()).hexdigest()


@lru_cache(maxsize=1024)
def _hashes(file: Path, location: str, allow_partial: bool, role: Role, _version: tuple[int, ...]) -> Hashes:
    if role != "classifier" and location == str(file) and (found := _encoder_of_ours(file)) is not None:
        places, info = found
        return Hashes.of(digest(_entries(file, places)), meaning(info))
    from mimbench.backbones.weights import open_weights  # imports torch

    return open_weights(location, role, allow_partial=allow_partial).hashes


def _encoder_of_ours(file: Path) -> tuple[tuple[Place, ...], EncoderInfo] | None:
    """Where an encoder's file that mimbench wrote holds its tensors, and what it says of the encoder.

    None of any other file, and of one that is damaged.
    """
    try:
        header = read_header(file)
        whole = bool(header.places) and header.size == file.stat().st_size
        if METADATA in header.metadata and whole and all(map(_is_float32, header.places)):
            return header.places, from_json(header.metadata[METADATA])
    except ValueError:
        pass
    return None


def _is_float32(place: Place) -> bool:
    return place.dtype == "F32" and place.end - place.begin == 4 * place.numbers


def _entries(file: Path, places: Iterable[Place]) -> Iterator[Entry]:
    with file.open("rb") as handle:
        for place in places:
            handle.seek(place.begin)
            yield place.name, place.shape, handle.read(place.end - place.begin)
