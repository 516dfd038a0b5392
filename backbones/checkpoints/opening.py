"""Open any checkpoint file safely and lazily: its weights, and what else it holds.

    open_checkpoint("mae_vit_b.pth")           the weights under "model"; optimizer and options are reported
    open_checkpoint("deit.pth?copy=ema")       the moving average, if the file holds several sets of weights
    open_checkpoint("dino.pth", copy="student")

| kind | opened by | in memory |
|---|---|---|
| torch | torch's safe loading | views of the mapped file |
| torch (legacy), torch before 1.6 | the same | all of it |
| safetensors, also in several files with an index | safetensors | views of the mapped file |
| detectron2 pickle | `unpickler` | views of the mapped file; all of it if written with protocol 2 |

A folder written by Hugging Face's transformers is opened as the weights in it (`huggingface.folder`), in one file or in
several with an index; `config.json` beside a file is read with it.

No code in a file is run. Besides tensors and containers a file may hold numpy numbers and arrays, `argparse.Namespace`
and yacs' `CfgNode`; a file with any other object is refused, and the error names the object. Training options in a file
become plain values.

Opening reads names and shapes but no weight, so its cost does not depend on the file's size. The code that loads the
tensors checks that they are finite and form an encoder: reading 8 GB of optimizer state to look for NaN would waste a
minute. For the same reason checksums are not verified.

A file is opened once in a process and kept open; it is opened again only if its size, time or inode has changed.
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

from mimbench.backbones.checkpoints import weight_sets
from mimbench.backbones.checkpoints.file_kind import INDEXED, Kind, kind_of, one_line, require_keys, shards_of
from mimbench.backbones.checkpoints.huggingface.folder import Config, config_beside, version_beside, weights_file
from mimbench.backbones.checkpoints.location import SETTINGS, parse_location, user_code
from mimbench.backbones.checkpoints.safetensors_header import METADATA, read_header
from mimbench.backbones.checkpoints.unpickler import ADMITTED, Array, Refused, load_arrays, names_in, safe_globals
from mimbench.backbones.checkpoints.weight_sets import Held

__all__ = ["Held", "Opened", "open_checkpoint"]

KEPT = 4  # files that stay open; the system can reclaim the memory of a mapped file at any time
_PLAIN = {  # names that torch files may hold in addition to `ADMITTED`
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "builtins.bytearray"),
    *("argparse.Namespace", "yacs.config.CfgNode"),
}
_TORCHS = re.compile(  # torch's own names that its safe loading may admit
    r"torch\.([a-z]\w*|_utils\._rebuild_\w+|_tensor\._rebuild_\w+|serialization\._get_layout"
    r"|([\w.]+\.)?\w*(Storage|Tensor|Size|Parameter))"
)
_DAMAGE = (  # errors that unpickling raises on damaged bytes
    *(RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, AssertionError),
    *(struct.error, zipfile.BadZipFile, MemoryError),
)


@dataclass(frozen=True)
class Opened:
    """An open checkpoint file; its tensors are views of the file until they are read."""

    file: Path
    kind: Kind
    size: int  # bytes on disk; the sum if it consists of several files
    weights: Mapping[str, Tensor]  # the chosen state dictionary, names exactly as in the file
    found_under: str  # "" at the top level, else "model", "state_dict", "teacher", "model.state_dict" ...
    copies: tuple[str, ...] = ()  # other sets of the same weights; `copy` selects one
    others: tuple[Held, ...] = ()  # everything except `weights`, including the copies
    arguments: Mapping[str, Any] = field(default_factory=dict)  # training options in the file, as plain values
    metadata: Mapping[str, str] = field(default_factory=dict)  # of safetensors, our exports and our detectors
    config: Config | None = None  # transformers' config.json beside the file
    options: Mapping[str, str] = field(default_factory=dict)  # settings of the location `FILE?family=...`; not `copy`


def open_checkpoint(path: str | Path, copy: str | None = None) -> Opened:
    """Open the checkpoint at `path`, any location that `location.parse_location` accepts.

    `copy` selects one of several sets of weights ("ema" for the only moving average); without it the first in
    `weight_sets.PREFERRED` is taken. The tensors are on the CPU and may be views of the file: clone them before
    changing them, and do not change the file while they are in use.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line that names the file: it is not a checkpoint (says what it is), is cut short, holds
            objects that are not admitted (names them), holds no weights, or lacks the set that `copy` names.
    """
    if (code := user_code(path)) is not None:
        raise ValueError(f"{code.name} is a function of user code; a file of weights is needed here")
    try:
        return _open(*parse_location(str(path)), copy)
    except ValueError as error:
        raise ValueError(one_line(str(error))) from None


def _open(file: Path, options: Mapping[str, str], copy: str | None) -> Opened:
    """Return the file that is already open, if it has not changed; otherwise open it."""
    file = weights_file(file)
    wanted, version = _wanted(file, options, copy), _version(file)
    settings = {key: value for key, value in options.items() if key in SETTINGS}
    if version is None:
        return _read(file, wanted)  # not a file: `kind_of` raises the error
    key = (file.absolute(), wanted)
    held, opened = _kept.pop(key, (None, None))
    if opened is None or held != version:
        opened = _read(file, wanted)
    _kept[key] = version, opened
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return replace(opened, file=file, options=settings)


def mapped_anew(opened: Opened) -> Opened:
    """Open the same file in a new mapping, whose memory is freed with the returned object.

    For reading a whole file once; all other code shares the mapping that stays open.
    """
    return _read(opened.file, opened.found_under or None)


Version = tuple[tuple[int, int, int, int], ...]
_kept: OrderedDict[tuple[Path, str | None], tuple[Version, Opened]] = OrderedDict()  # least recently used first


def _version(file: Path) -> Version | None:
    """Return device, inode, size and time of the file and of files named by an index; None if it is not a file."""
    if not file.is_file():
        return None
    files = shards_of(file) if file.suffix == ".json" and kind_of(file) in INDEXED else []
    stats = [part.stat() for part in (file, *files)]
    read = tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)
    return (*read, *((0, 0, *part) for part in version_beside(file)))


def _read(file: Path, wanted: str | None) -> Opened:
    opened = _weights(file, wanted)
    return replace(opened, config=config_beside(file))


def _weights(file: Path, wanted: str | None) -> Opened:
    kind = kind_of(file)
    if kind == "safetensors":
        return _safetensors(file, wanted)
    if kind == "index of torch files":
        return _torch_shards(file, wanted)
    tree = _arrays(file) if kind == "detectron2 pickle" else _torch(file, kind)
    return _opened(file, kind, tree, wanted)


def _torch_shards(file: Path, wanted: str | None) -> Opened:
    """Open all torch files that an index names as one state dictionary."""
    parts = shards_of(file)
    trees = [_torch(part, kind_of(part)) for part in parts]
    for part, tree in zip(parts, trees, strict=True):
        if not isinstance(tree, Mapping):
            raise ValueError(f"{part} holds no weights: {_instead(tree)}")
    tree = {key: value for part in trees if isinstance(part, Mapping) for key, value in part.items()}
    opened = _opened(file, "torch", tree, wanted)
    require_keys(file, opened.weights)
    return replace(opened, size=sum(part.stat().st_size for part in parts))


def _wanted(file: Path, options: Mapping[str, str], copy: str | None) -> str | None:
    """Return the set of weights that `?copy=` or `copy` selects."""
    asked = options.get("copy", copy)
    if copy is not None and asked != copy:
        raise ValueError(f"{file}: copy={copy} and ?copy={asked} contradict each other; give one")
    return asked


def _opened(file: Path, kind: Kind, tree: object, copy: str | None) -> Opened:
    """Return the content of the unpickled `tree`."""
    sets = dict(weight_sets.weight_sets(tree)) if isinstance(tree, Mapping) else {}
    if not isinstance(tree, Mapping) or not sets:
        raise ValueError(f"{file} holds no weights: {_instead(tree)}")
    try:
        name = weight_sets.chosen(sets, copy)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from None
    beside, metadata = weight_sets.kept_beside(tree, name)
    weights = {**weight_sets.tensors_of(sets[name]), **beside}
    _require_dense(weights, file)
    return Opened(
        file=file,
        kind=kind,
        size=file.stat().st_size,
        weights=weights,
        found_under=name,
        copies=weight_sets.copies_of(sets, name),
        others=tuple(held for held in weight_sets.others_in(tree, name) if held.name != METADATA or not metadata),
        arguments=weight_sets.arguments_in(tree),
        metadata={**metadata, **weight_sets.texts_in(tree)},
    )


def _instead(tree: object) -> str:
    """Say what an unpickled file without weights holds."""
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
    """Read a torch file without running code in it."""
    try:
        with torch.serialization.safe_globals(safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; real problems raise errors
            if file.suffix == ".safetensors":  # torch would trust the wrong suffix
                with file.open("rb") as handle:
                    return torch.load(handle, map_location="cpu", weights_only=True)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=kind == "torch" and _is_stored(file))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} {_refusal(file, kind, str(error))}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or "it ends too soon"
        raise ValueError(f"{file} is not a checkpoint that torch can read, or is cut short: {reason}") from None


def _is_stored(file: Path) -> bool:
    """Whether the archive is uncompressed, so that the file can be mapped."""
    with zipfile.ZipFile(file) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _refusal(file: Path, kind: Kind, message: str) -> str:
    """Return the reason why torch's safe loading refuses a file, with the names of all refused objects."""
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
    """Return the classes and functions in a pickle that are not admitted."""
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
    """Return all names in a plain pickle that are not admitted, or only `first` if the pickle is cut short."""
    try:
        return _foreign(file, "detectron2 pickle") or [first]
    except EOFError:
        return [first]


def _arrays(file: Path) -> object:
    """Read a pickle of numpy arrays."""
    try:
        return load_arrays(file)
    except Refused as error:
        advice = "a plain pickle may hold only numpy arrays: save the tensors with torch.save and give that"
        raise ValueError(f"{file} {_refused(_foreign_or(file, str(error)), advice)}") from None
    except EOFError:
        size = file.stat().st_size
        raise ValueError(f"{file} is cut short: the pickle ends too soon ({size:,} bytes are here)") from None
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        raise ValueError(f"{file} is not a pickle of numpy arrays: {' '.join(str(error).split())[:120]}") from None


def _safetensors(file: Path, copy: str | None) -> Opened:
    if copy is not None:
        raise ValueError(f"{file}: a safetensors file holds one set of weights; leave copy={copy} out")
    files = shards_of(file)
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part in files:
        if kind_of(part) != "safetensors":
            raise ValueError(f"{part} is not a safetensors file")
        read_header(part)  # raises an error if the file is damaged
        try:
            with safe_open(part, framework="pt") as handle:
                metadata.update(handle.metadata() or {})
                weights.update({key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118 (no dictionary)
        except (SafetensorError, *_DAMAGE) as error:
            raise ValueError(f"{part} is not a readable safetensors file: {error}") from None
    if not weights:
        raise ValueError(f"{file} holds no weights: it is empty")
    require_keys(file, weights)
    size = sum(part.stat().st_size for part in files)
    return Opened(file, "safetensors", size, weights, found_under="", metadata=metadata)
