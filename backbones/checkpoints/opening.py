"""Any checkpoint file, opened safely and lazily: what weights are in it, and what else.

    open_checkpoint("mae_vit_b.pth")           the weights, found under "model"; optimizer and options are reported
    open_checkpoint("deit.pth?copy=ema")       of two sets of weights, the moving average
    open_checkpoint("dino.pth", copy="student")

| kind | opened by | in memory |
|---|---|---|
| torch | torch's safe loading | views of the mapped file |
| torch (legacy), torch before 1.6 | the same | all of it |
| safetensors, also in several files with an index | safetensors | views of the mapped file |
| detectron2 pickle | `unpickler` | views of the mapped file; all of it if written with protocol 2 |

Nothing in a file is run. Besides tensors and containers it may hold numpy numbers and arrays, `argparse.Namespace` and
yacs' `CfgNode`; with anything else it is refused, and named. The options that files keep are plain values here.

Opening reads names and shapes and no weight, so its cost is that of the file's index, whatever the file's size. Whether
the numbers are finite, and whether they make an encoder, is for whoever loads the tensors that matter: reading 8 GB of
optimizer to look for NaN would be a minute's work for nothing. For the same reason checksums are not verified.

A file is opened once in a process, as long as its size, time and inode stay: it is kept open, and given again.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimbench.backbones.checkpoints import weight_sets as contents
from mimbench.backbones.checkpoints.file_kind import Kind, kind_of, one_line, shards_of
from mimbench.backbones.checkpoints.location import parse_location, user_code
from mimbench.backbones.checkpoints.safetensors_header import METADATA, read_header
from mimbench.backbones.checkpoints.unpickler import ADMITTED, Array, Refused, load_arrays, names_in, safe_globals
from mimbench.backbones.checkpoints.weight_sets import Held

__all__ = ["Held", "Opened", "open_checkpoint"]

KEPT = 4  # files that stay open; a mapped file costs no memory that the system could not take back
_PLAIN = {  # what torch files may name beyond `ADMITTED`
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "builtins.bytearray"),
    *("argparse.Namespace", "yacs.config.CfgNode"),
}
_TORCHS = re.compile(  # what torch's safe loading may admit of its own
    r"torch\.([a-z]\w*|_utils\._rebuild_\w+|_tensor\._rebuild_\w+|serialization\._get_layout"
    r"|([\w.]+\.)?\w*(Storage|Tensor|Size|Parameter))"
)
_DAMAGE = (  # what unpickling raises on bytes that are not what they should be
    *(RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, AssertionError),
    *(struct.error, zipfile.BadZipFile, MemoryError),
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint file that is open: its tensors are views of the file until they are read."""

    file: Path
    kind: Kind
    size: int  # bytes on disk; of all its files if it is in several
    weights: Mapping[str, Tensor]  # the chosen state dictionary, names exactly as in the file
    found_under: str  # "" at the top level, else "model", "state_dict", "teacher", "model.state_dict" ...
    copies: tuple[str, ...] = ()  # other sets of the same weights, each of which `copy` can name
    others: tuple[Held, ...] = ()  # all that is not `weights`, the copies too
    arguments: Mapping[str, Any] = field(default_factory=dict)  # plain values of the options found in the file
    metadata: Mapping[str, str] = field(default_factory=dict)  # of safetensors, of our exports and our detectors


def open_checkpoint(path: str | Path, copy: str | None = None) -> Opened:
    """The checkpoint at `path`, which may be all that `location.parse_location` takes.

    `copy` names the set of weights to take when there are several ("ema" for the only moving average); without it the
    first of `contents.PREFERRED` is taken. The tensors are on the CPU and may be views of the file: clone before
    changing them, and keep the file as it is while they are in use.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: in one line that names the file: it is no checkpoint (and what it is instead), is cut short, holds
            objects that are not admitted (and their names), holds no weights, or has not the set that is asked for.
    """
    if (code := user_code(path)) is not None:
        raise ValueError(f"{code.name} is a function of user code, and what is wanted here is a file of weights")
    try:
        return _open(*parse_location(str(path)), copy)
    except ValueError as error:
        raise ValueError(one_line(str(error))) from None


def _open(file: Path, options: Mapping[str, str], copy: str | None) -> Opened:
    """The file as it is open already, if it is the same version of the same file; else opened now."""
    wanted, version = _wanted(file, options, copy), _version(file)
    if version is None:
        return _read(file, wanted)  # it is no file, which `kind_of` says
    key = (file.absolute(), wanted)
    held, opened = _kept.pop(key, (None, None))
    if opened is None or held != version:
        opened = _read(file, wanted)
    _kept[key] = version, opened
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return replace(opened, file=file)


def mapped_anew(opened: Opened) -> Opened:
    """The same file in a mapping of its own: what is read of it leaves memory with what this returns.

    For a look at a whole file; everything else shares the one that stays open.
    """
    return _read(opened.file, opened.found_under or None)


Version = tuple[tuple[int, int, int, int], ...]
_kept: OrderedDict[tuple[Path, str | None], tuple[Version, Opened]] = OrderedDict()  # the last used is the last


def _version(file: Path) -> Version | None:
    """Device, inode, size and time of the file, and of those that an index names; None of what is no file."""
    if not file.is_file():
        return None
    files = shards_of(file) if file.suffix == ".json" and kind_of(file) == "safetensors" else []
    stats = [part.stat() for part in (file, *files)]
    return tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def _read(file: Path, wanted: str | None) -> Opened:
    kind = kind_of(file)
    if kind == "safetensors":
        return _safetensors(file, wanted)
    tree = _arrays(file) if kind == "detectron2 pickle" else _torch(file, kind)
    return _opened(file, kind, tree, wanted)


def _wanted(file: Path, options: Mapping[str, str], copy: str | None) -> str | None:
    """The set of weights that is asked for, by either way."""
    asked = options.get("copy", copy)
    if copy is not None and asked != copy:
        raise ValueError(f"{file}: copy={copy} and ?copy={asked} are asked for at once; give one")
    return asked


def _opened(file: Path, kind: Kind, tree: object, copy: str | None) -> Opened:
    """What is in the unpickled `tree`."""
    sets = dict(contents.weight_sets(tree)) if isinstance(tree, Mapping) else {}
    if not isinstance(tree, Mapping) or not sets:
        raise ValueError(f"{file} holds no weights: {_instead(tree)}")
    try:
        name = contents.chosen(sets, copy)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from None
    beside, metadata = contents.kept_beside(tree, name)
    weights = {**contents.tensors_of(sets[name]), **beside}
    _require_dense(weights, file)
    return Opened(
        file=file,
        kind=kind,
        size=file.stat().st_size,
        weights=weights,
        found_under=name,
        copies=contents.copies_of(sets, name),
        others=tuple(held for held in contents.others_in(tree, name) if held.name != METADATA or not metadata),
        arguments=contents.arguments_in(tree),
        metadata={**metadata, **contents.texts_in(tree)},
    )


def _instead(tree: object) -> str:
    """What an unpickled file holds that has no weights in it."""
    if isinstance(tree, Tensor | Array):
        return "a single tensor, not a dictionary of them by name"
    if not isinstance(tree, Mapping):
        return f"a {type(tree).__name__}, not a dictionary of tensors by name"
    return f"its entries are {', '.join(str(key) for key in list(tree)[:5])}" if tree else "it is empty"


def _require_dense(weights: Mapping[str, Tensor], file: Path) -> None:
    for key, value in weights.items():
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            how = "without its numbers" if value.is_meta else "sparse or quantised"
            raise ValueError(f"{file}: {key} is saved {how}; save the dense weights and give that")


def _torch(file: Path, kind: Kind) -> object:
    """What is in a torch file; without any code of its own."""
    try:
        with torch.serialization.safe_globals(safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; what matters is raised
            if file.suffix == ".safetensors":  # torch would believe the name, which is wrong
                with file.open("rb") as handle:
                    return torch.load(handle, map_location="cpu", weights_only=True)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=kind == "torch" and _is_stored(file))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} {_refusal(file, kind, str(error))}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or "it ends too soon"
        raise ValueError(f"{file} is not a checkpoint that torch can read, or is cut short: {reason}") from None


def _is_stored(file: Path) -> bool:
    """Whether nothing in the archive is compressed, so that the file can be mapped."""
    with zipfile.ZipFile(file) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _refusal(file: Path, kind: Kind, message: str) -> str:
    """Why torch's safe loading refuses a file, with the names of all that is in the way."""
    try:
        foreign = _foreign(file, kind)
    except _DAMAGE:
        return "is cut short: the pickle in it ends too soon"
    named = re.search(r"GLOBAL (\S+)", message)
    if named and named.group(1) not in {name.removeprefix("builtins.") for name in foreign}:
        foreign = sorted({*foreign, named.group(1)})
    if foreign:
        return _refused(foreign, "save its state_dict alone and give that")
    if "Unsupported operand" in message:
        return "was saved with a pickle protocol that torch's safe loading does not read; save it with torch's default"
    return f"is not a checkpoint that torch can read: {' '.join(message.split())[:120]}"


def _refused(foreign: list[str], advice: str) -> str:
    more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
    return (
        f"is refused: it holds objects of {', '.join(foreign[:5])}{more}, and opening it would run their code; {advice}"
    )


def _foreign(file: Path, kind: Kind) -> list[str]:
    """The classes and functions in a pickle that are not admitted."""
    if kind == "torch":
        with zipfile.ZipFile(file) as archive:
            entry = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            with archive.open(entry) as handle:
                names = names_in(handle)
    else:
        with file.open("rb") as handle:
            names = names_in(handle, pickles=4 if kind == "torch (legacy)" else 1)  # magic, protocol, system, object
    if kind == "detectron2 pickle":
        return [name for name in names if name not in ADMITTED]
    return [name for name in names if name not in {*ADMITTED, *_PLAIN} and not _TORCHS.fullmatch(name)]


def _foreign_or(file: Path, first: str) -> list[str]:
    """All that is not admitted in a plain pickle, or `first` alone if the pickle is not whole."""
    try:
        return _foreign(file, "detectron2 pickle") or [first]
    except EOFError:
        return [first]


def _arrays(file: Path) -> object:
    """What is in a pickle of numpy arrays."""
    try:
        return load_arrays(file)
    except Refused as error:
        advice = "a plain pickle may hold numpy arrays alone: save the tensors with torch.save and give that"
        raise ValueError(f"{file} {_refused(_foreign_or(file, str(error)), advice)}") from None
    except EOFError:
        size = file.stat().st_size
        raise ValueError(f"{file} is cut short: the pickle ends too soon ({size:,} bytes are here)") from None
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        raise ValueError(f"{file} is not a pickle of numpy arrays: {' '.join(str(error).split())[:120]}") from None


def _safetensors(file: Path, copy: str | None) -> Opened:
    if copy is not None:
        raise ValueError(f"{file}: copy={copy} is asked for, and a safetensors file holds one set of weights")
    files = shards_of(file)
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part in files:
        if kind_of(part) != "safetensors":
            raise ValueError(f"{part} is not a safetensors file")
        read_header(part)  # which says how it is damaged, if it is
        try:
            with safe_open(part, framework="pt") as handle:
                metadata.update(handle.metadata() or {})
                weights.update({key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118 (no dictionary)
        except (SafetensorError, *_DAMAGE) as error:
            raise ValueError(f"{part} is not a readable safetensors file: {error}") from None
    if not weights:
        raise ValueError(f"{file} holds no weights: it is empty")
    size = sum(part.stat().st_size for part in files)
    return Opened(file, "safetensors", size, weights, found_under="", metadata=metadata)
