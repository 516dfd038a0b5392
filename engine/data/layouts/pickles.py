"""Read CIFAR's pickles without running their code: dictionaries, lists, strings, numbers, and byte arrays.

numpy's own code for unpickling is not run either: what a pickle may name stands for a class of this module, and
everything else is refused before anything is made of it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Type:
    """Replaces `numpy.dtype`; allows bytes only."""

    def __init__(self, code: str | bytes, _align: object = False, _copy: object = False) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, not of bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore the rest of numpy's state (byte order, fields): it means nothing for bytes."""


class _Array:
    """Replaces `numpy.ndarray`."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, kind, fortran, data = state
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = data.encode("latin1") if isinstance(data, str) else data
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, kind: object, shape: Any, order: str) -> _Array:
    array = _Array()
    array.__setstate__((shape, kind, order == "F", bytes(data)))
    return array


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _Array,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR file needs") from None


def load(content: bytes) -> dict[str, Any]:
    """Return the dictionary in a pickle, with string keys and numpy arrays.

    Raises:
        pickle.UnpicklingError: if it is something else, damaged, or holds something that is not plain.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise pickle.UnpicklingError(f"it is damaged: {error}") from None
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dictionary")
    texts = {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    return {key: value.values if isinstance(value, _Array) else value for key, value in texts.items()}
