"""Read pickles without running code in them: only plain containers, numpy arrays and numbers are admitted.

detectron2's model zoo consists of such files, `{"model": {name: ndarray}, "__author__": ...}`. Not even numpy's own
code runs: each admitted name in a pickle is replaced by a class or function of this module, or by a plain container
(`ADMITTED`); every other name is refused before anything is built. Arrays of 4 kB and more are views of the mapped
file, so the time and memory of reading depend on the number of arrays, not on their size. Pickles of protocol 2 or
older encode the bytes differently; those arrays are read into memory.

torch's safe loading uses the same stand-ins (`safe_globals`), because numpy trusts the description in a pickled type,
and a malicious one could point to any memory.
"""

from __future__ import annotations

import argparse
import mmap
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy
import torch
from torch import Tensor

KINDS = "biufcSU"  # kinds of numpy types with plain values: no objects, no records, no dates
VIEWED = 4096  # from this many bytes on, an array is a view of the file
Buffer = bytes | bytearray | memoryview


class Dtype:
    """Replaces `numpy.dtype`: the type's code and byte order."""

    def __init__(self, code: str | bytes, _align: object = False, _copy: object = False) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else str(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("ascii") if isinstance(state[1], bytes) else str(state[1])

    def numpy(self) -> numpy.dtype[Any]:
        """Return the numpy type, if its values are plain."""
        try:
            found = numpy.dtype(self.code).newbyteorder(cast(Any, self.order))
        except (TypeError, ValueError):
            found = numpy.dtype(object)
        if found.kind not in KINDS or found.hasobject:
            raise pickle.UnpicklingError(f"it holds an array of type {self.code!r}, not of numbers")
        return found


class Array:
    """Replaces `numpy.ndarray`: filled by the pickle; `tensor` converts it."""

    def __init__(self) -> None:
        self.values: numpy.ndarray[Any, Any] = numpy.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = data.encode("latin1") if isinstance(data, str) else data  # from Python 2
        try:
            flat = numpy.frombuffer(content, dtype.numpy())
            self.values = flat.reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError):
            raise pickle.UnpicklingError(f"it holds an array whose bytes do not make its shape {shape}") from None

    def tensor(self) -> Tensor | None:
        """Return the numbers as a tensor; None for texts and types that torch does not support."""
        values = self.values
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        if not values.flags.writeable:
            values = values.copy()
        try:
            return torch.from_numpy(values)
        except TypeError:
            return None


class CfgNode:
    """Replaces `yacs.config.CfgNode`, which is a dictionary; yacs need not be installed."""

    def __new__(cls, *_: object) -> OrderedDict[str, Any]:  # type: ignore[misc]
        """Return an ordinary dictionary, which torch's safe loading may fill."""
        return OrderedDict()


def _reconstruct(*_: object) -> Array:
    return Array()


def _frombuffer(data: Buffer, dtype: Dtype, shape: tuple[int, ...], order: str) -> Array:
    array = Array()
    array.__setstate__((shape, dtype, order == "F", data))
    return array


def _scalar(dtype: Dtype, data: Buffer | str = b"") -> object:
    array = Array()
    array.__setstate__(((1,), dtype, False, data))
    return array.values[0].item()


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_NUMPY: dict[str, Any] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
STAND_INS: dict[str, Any] = {  # numpy's names before and since version 2
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.{name}": made for core in ("core", "_core") for name, made in _NUMPY.items()},
    "builtins.bytes": _no_bytes,  # the bytes of an empty array, in protocol 2
}
ADMITTED: dict[str, Any] = {
    **STAND_INS,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
}


def safe_globals() -> list[Any]:
    """Return the additional classes for torch's safe loading, for `torch.serialization.safe_globals`."""
    named = [(made, name) for name, made in STAND_INS.items()]
    return [argparse.Namespace, (CfgNode, "yacs.config.CfgNode"), *named]


class Refused(pickle.UnpicklingError):
    """The pickle holds an object that is not admitted."""


class _Mapped:
    """A memory-mapped file for an unpickler; large pieces are views of the mapping."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at = content, 0

    def read(self, size: int) -> Buffer:
        piece = self.content[self.at : self.at + size]
        if len(piece) < size:
            raise EOFError
        self.at += size
        return piece if size >= VIEWED else bytes(piece)

    def readline(self) -> bytes:
        begin = self.at
        while self.at < len(self.content):
            self.at += 1
            if self.content[self.at - 1] == ord("\n"):
                return bytes(self.content[begin : self.at])
        raise EOFError


class _Unpickler(pickle._Unpickler):  # the Python version, which keeps the views that `read` returns
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[_spelled(f"{module}.{name}")]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def load_build(self) -> None:
        """Set the state of an object: numpy's stand-ins use it, dictionaries ignore it."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Dtype | Array):
            made.__setstate__(state)
        elif not isinstance(made, OrderedDict):
            raise Refused(type(made).__name__)

    dispatch[pickle.BUILD[0]] = load_build

    def _decode_string(self, value: Buffer) -> str:
        return bytes(value).decode("latin1")


def _spelled(name: str) -> str:
    """Return Python 3's name for a function named in a pickle."""
    return f"builtins.{name.removeprefix('__builtin__.')}" if name.startswith("__builtin__.") else name


def load_arrays(file: Path) -> Any:
    """Read the pickle at `file`: containers, texts, numbers and `Array`s.

    Raises:
        Refused: naming the first object in it that is not admitted.
        pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError: if it is damaged.
    """
    with file.open("rb") as handle:
        content = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY))
    return _Unpickler(cast(Any, _Mapped(content))).load()


def names_in(handle: IO[bytes], pickles: int = 1) -> list[str]:
    """Return the classes and functions named in the next `pickles` pickles of `handle`, without unpickling.

    Raises:
        EOFError: if a pickle is cut short.
    """
    try:
        names = [name for _ in range(pickles) for name in _names(pickletools.genops(handle))]
    except (ValueError, MemoryError, OverflowError):  # OverflowError from impossible lengths
        raise EOFError("the pickle is cut short") from None
    return sorted({_spelled(name) for name in names})


def _names(operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> list[str]:
    names: list[str] = []
    texts: list[str] = []
    memo: dict[int, str] = {}
    for operation, argument, _ in operations:
        match operation.name:
            case "GLOBAL" | "INST":
                names.append(argument.replace(" ", ".", 1))
            case "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[len(memo) if argument is None else argument] = texts[-1] if texts else ""
            case "BINGET" | "LONG_BINGET" | "GET":
                texts.append(memo.get(argument, ""))
            case _ if isinstance(argument, str):
                texts.append(argument)
    return names
