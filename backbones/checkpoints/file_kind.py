"""Tell the kind of a checkpoint file from its bytes, not its name; if it is not a checkpoint, say what it is.

    kind_of(Path("mae_vit_b.pth"))   "torch"
    kind_of(Path("error.pth"))       ValueError: error.pth is a web page ...

Reads the first bytes of a file, and the directory at the end of a zip archive; nothing is unpickled. Does not import
torch.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal

from mimbench.backbones.checkpoints.safetensors_header import LONGEST

Kind = Literal["torch", "torch (legacy)", "safetensors", "detectron2 pickle", "index of torch files"]
INDEXED: tuple[Kind, ...] = ("safetensors", "index of torch files")  # what a `.json` index can be of

HEAD = 4096  # bytes that are read
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pkl", ".ckpt", ".tar")  # common suffixes of checkpoints
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle has it, after two bytes of protocol

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip archive; unpack it and give the checkpoint in it"),
    (b"BZh", "a bzip2 archive; unpack it and give the checkpoint in it"),
    (b"\xfd7zXZ", "an xz archive; unpack it and give the checkpoint in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it and give the checkpoint in it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it and give the checkpoint in it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them; mimbench reads PyTorch files, safetensors and detectron2's .pkl"),
    (b"\x93NUMPY", "a single numpy array, not a checkpoint"),
    (b"GGUF", "a GGUF file of a quantised language model, not a vision encoder"),
    (b"\x89PNG", "a PNG picture, not a checkpoint"),
    (b"\xff\xd8\xff", "a JPEG picture, not a checkpoint"),
    (b"%PDF", "a PDF document, not a checkpoint"),
    (b"\x7fELF", "a program, not a checkpoint"),
)
_TEXTS: tuple[tuple[str, str], ...] = (
    (
        r"version https://git-lfs",
        "a Git LFS pointer, not the file itself; run `git lfs pull` where it comes from, or download the file",
    ),
    (
        r"(<!--.*?-->\s*)*(<!doctype html|<html|<head|<body)",
        "a web page (HTML), not the file: the download got an error or login page; download it again",
    ),
    (r"<\?xml|<error", "an XML text, probably a storage server's error message; download the file again"),
    (r"/?\S*annex/objects/", "a git-annex pointer, not the file itself; run `git annex get` where it comes from"),
    (r"model_checkpoint_path:", "the index of a TensorFlow checkpoint; mimbench reads PyTorch files and safetensors"),
)


def kind_of(file: Path) -> Kind:
    """Return the kind of checkpoint that `file` is.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line that says what the file is instead, and what to do.
    """
    _require_file(file)
    size = file.stat().st_size
    with file.open("rb") as handle:
        head = handle.read(HEAD)
    if not head.strip(b"\0"):
        what = "empty (0 bytes)" if not size else "all zero bytes at its beginning"
        raise ValueError(f"{file} is {what}: the copy or download did not finish; fetch it again")
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(file, size)
    if _LEGACY in head[:32]:
        return "torch (legacy)"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "detectron2 pickle"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST:
        return "safetensors"
    if file.suffix == ".json" and b'"weight_map"' in head:
        return "safetensors" if _shard_suffix(file) == ".safetensors" else "index of torch files"
    raise ValueError(f"{file} is {_what(file, head, size)}")


def one_line(text: str) -> str:
    """Return `text` from a file in printable form: no line breaks, no control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:1000]


def _require_file(file: Path) -> None:
    if file.is_dir():
        inside = [entry.name for entry in sorted(file.iterdir()) if entry.suffix in SUFFIXES]
        hint = f"give the file in it: {', '.join(inside[:3])}" if inside else "and contains no checkpoint file"
        raise ValueError(f"{file} is a directory; {hint}" if inside else f"{file} is a directory, {hint}")
    if not file.exists():
        raise FileNotFoundError(f"checkpoint {file} does not exist")
    if not file.is_file():
        raise ValueError(f"{file} is not an ordinary file; give the checkpoint itself")


def _zip_kind(file: Path, size: int) -> Kind:
    """The kind of the zip archive `file`: torch's, or a ValueError."""
    try:
        if not zipfile.is_zipfile(file):
            raise EOFError
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except EOFError:
        what = f"is cut short: it is a zip archive whose end is missing (the file has {size:,} bytes); fetch it again"
        raise ValueError(f"{file} {what}") from None
    except (zipfile.BadZipFile, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{file} is damaged: {error}; fetch it again") from None
    inner = [name.partition("/")[2] for name in names]
    if "data.pkl" not in inner or "constants.pkl" in inner:
        raise ValueError(f"{file} is {_archive(names, inner)}")
    return "torch"


def _archive(names: list[str], inner: list[str]) -> str:
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return (
            "a TorchScript program, not a checkpoint; save the weights alone with "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW) and give that"
        )
    if "archive_format" in inner or "archive_format" in names:
        return "an exported torch program (torch.export), not a checkpoint; save the model's state_dict and give that"
    if any(name.endswith(".npy") for name in names):
        return "a numpy archive (.npz), as JAX projects publish them; mimbench reads PyTorch files and safetensors"
    if "model.weights.h5" in names:
        return "a Keras model; mimbench reads PyTorch files, safetensors and detectron2's .pkl"
    checkpoints = [name for name in names if name.endswith(SUFFIXES)]
    what = f"a zip archive that contains {', '.join(checkpoints[:3])}" if checkpoints else "a zip archive"
    rest = "unpack it and give the checkpoint in it" if checkpoints else f"it holds {', '.join(names[:3]) or 'nothing'}"
    return f"{what}, not a checkpoint; {rest}"


def _what(file: Path, head: bytes, size: int) -> str:
    """Say what a file is that is not a checkpoint."""
    known = next((what for magic, what in _MAGIC if head.startswith(magic)), None)
    if known:
        return known
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the checkpoint in it"
    if file.suffix == ".onnx" or re.match(rb"\x08[\x01-\x20]\x12[\x01-\x40][ -~]+", head):
        return "an ONNX model, which cannot be converted back; give the PyTorch checkpoint it was exported from"
    if ".data-0" in file.name or file.suffix == ".index":
        return "a part of a TensorFlow checkpoint; mimbench reads PyTorch files, safetensors and detectron2's .pkl"
    text = _text(head)
    if text is None:
        begin = " ".join(f"{byte:02x}" for byte in head[:8])
        kinds = "neither a PyTorch file nor safetensors nor a detectron2 .pkl"
        return f"not a checkpoint: {kinds} (it has {size:,} bytes and begins with {begin})"
    known = next((what for rule, what in _TEXTS if re.match(rule, text, re.IGNORECASE | re.DOTALL)), None)
    shown = " ".join(text.split())[:60]
    return known or f"a text file, not a checkpoint; it begins with {shown!r}"


def _text(head: bytes) -> str | None:
    """Return the beginning of the file as text, or None if it is not text."""
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    ordinary = sum(letter.isprintable() or letter in "\n\r\t" for letter in text)
    return text.strip() if text and ordinary > 0.95 * len(text) else None


def shards_of(file: Path) -> list[Path]:
    """Return the files named by an index (`model.safetensors.index.json`); `file` itself if not an index.

    Raises:
        ValueError: if it is not a valid index, or files that it names are not beside it.
    """
    if file.suffix != ".json":
        return [file]
    places, suffix = _weight_map(file), _shard_suffix(file)
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(suffix):
            kind = "torch" if suffix == ".bin" else "safetensors"
            raise ValueError(f"{file} names {name!r}, which is not a {kind} file beside it; merge the files into one")
    missing = [name for name in names if not (file.parent / name).is_file()]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{file} names {', '.join(missing)}, which {are} not beside it; fetch all {len(names)} files")
    return [file.parent / name for name in names]


def require_keys(file: Path, keys: Container[str]) -> None:
    """Refuse an index whose files do not hold the weights that it names.

    Raises:
        ValueError: naming the first of them and the file where it should be.
    """
    if file.suffix != ".json":
        return
    for key, name in _weight_map(file).items():
        if key not in keys:
            raise ValueError(
                f"{file.parent / name} does not hold {key}, which {file.name} places there; fetch it again"
            )


def _weight_map(file: Path) -> dict[str, str]:
    """Return the file of each weight, as an index says."""
    try:
        places: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if places and all(isinstance(name, str) for name in places.values()):
            return places
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{file} is not a valid index of a checkpoint in several files")


def _shard_suffix(file: Path) -> str:
    """Return the suffix of the files of an index: `.safetensors`, or torch's `.bin` if the first has that."""
    try:
        return ".bin" if next(iter(_weight_map(file).values())).endswith(".bin") else ".safetensors"
    except ValueError:
        return ".safetensors"
