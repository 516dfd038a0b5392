"""Pickles read without running any code of theirs: plain containers, numpy arrays and numbers, and nothing else.

detectron2's model zoo is made of such files, `{"model": {name: ndarray}, "__author__": ...}`. Not even numpy's own code
runs: each name that a pickle may hold stands for a class or function of this module, or for a plain container
(`ADMITTED`), and every other name is refused before anything is made of it. Arrays of 4 kB and more are views of the
mapped file, so reading a pickle costs time and memory by the number of its arrays, not by their size; those written
with protocol 2 or older have their bytes in another form, and are taken into memory.

torch's safe loading is given the same stand-ins (`safe_globals`), because numpy believes what a pickled type says of
itself, and one made up by a file could point anywhere.
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

KINDS = "biufcSU"  # of numpy types whose bytes are plain values: no objects, no records, no dates
VIEWED = 4096  # bytes from which on an array is a view of the file
Buffer = bytes | bytearray | memoryview


class Dtype:
    """Stands for `numpy.dtype`: the type's code and byte order."""

    def __init__(self, code: str | bytes, _align: object = False, _copy: object = False) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else str(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("ascii") if isinstance(state[1], bytes) else str(state[1])

    def numpy(self) -> numpy.dtype[Any]:
        """The real type, if its values are plain."""
        try:
            found = numpy.dtype(self.code).newbyteorder(cast(Any, self.order))
        except (TypeError, ValueError):
            found = numpy.dtype(object)
        if found.kind not in KINDS or found.hasobject:
            raise pickle.UnpicklingError(f"it holds an array of type {self.code!r}, not of numbers")
        return found


class Array:
    """Stands for `numpy.ndarray`: filled by the pickle, and a tensor when asked."""

    def __init__(self) -> None:
        self.values: numpy.ndarray[Any, Any] = numpy.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        try:
            flat = numpy.frombuffer(content, dtype.numpy())
            self.values = flat.reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError):
            raise pickle.UnpicklingError(f"it holds an array whose bytes do not make its shape {shape}") from None

    def tensor(self) -> Tensor | None:
        """The same numbers as a tensor; None if they are texts or of a type that torch does not know."""
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
    """Stands for `yacs.config.CfgNode`, which is a dictionary; yacs need not be installed."""

    def __new__(cls, *_: object) -> OrderedDict[str, Any]:  # type: ignore[misc]
        """An ordinary dictionary, which torch's safe loading may fill."""
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
STAND_INS: dict[str, Any] = {  # for the names of numpy before and after its version 2
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
    """What torch's safe loading may make beyond its own, as `torch.serialization.safe_globals` takes it."""
    named = [(made, name) for name, made in STAND_INS.items()]
    return [argparse.Namespace, (CfgNode, "yacs.config.CfgNode"), *named]


class Refused(pickle.UnpicklingError):
    """The pickle holds something that is not admitted."""


class _Mapped:
    """A file as an unpickler reads it, of which large pieces are views of the memory-mapped file."""

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


class _Unpickler(pickle._Unpickler):  # the one written in Python, which leaves the pieces that `read` gives as they are
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[_spelled(f"{module}.{name}")]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def load_build(self) -> None:
        """Give an object its state: numpy's stand-ins take theirs, a dictionary has none that matters."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Dtype | Array):
            made.__setstate__(state)
        elif not isinstance(made, OrderedDict):
            raise Refused(type(made).__name__)

    dispatch[pickle.BUILD[0]] = load_build

    def _decode_string(self, value: Buffer) -> str:
        return bytes(value).decode("latin1")


def _spelled(name: str) -> str:
    """A pickle's name for a function, as Python 3 spells it."""
    return f"builtins.{name.removeprefix('__builtin__.')}" if name.startswith("__builtin__.") else name


def load_arrays(file: Path) -> Any:
    """What is in the pickle at `file`: containers, texts, numbers and `Array`s.

    Raises:
        Refused: naming the first thing in it that is not admitted.
        pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError: it is damaged.
    """
    with file.open("rb") as handle:
        content = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY))
    return _Unpickler(cast(Any, _Mapped(content))).load()


def names_in(handle: IO[bytes], pickles: int = 1) -> list[str]:
    """The classes and functions that the next `pickles` pickles of `handle` name, found without unpickling.

    Raises:
        EOFError: if they are not whole.
    """
    try:
        names = [name for _ in range(pickles) for name in _names(pickletools.genops(handle))]
    except (ValueError, MemoryError, OverflowError):  # the latter by lengths that cannot be
        raise EOFError("the pickle is not whole") from None
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
