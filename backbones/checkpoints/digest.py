"""The digest of an encoder's tensors: sha256 of their names, shapes and float32 values, sorted by name.

`Hashes.of` adds what else changes the encoder's features; `backbones.content` says what is hashed of a file. Without
torch until a torch tensor is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Entry = tuple[str, tuple[int, ...], bytes]  # name, shape, float32 values in little-endian order


def digest(entries: Iterable[Entry]) -> str:
    """Return the digest of `entries`, in hexadecimal; they must be sorted by name."""
    found = hashlib.sha256(b"mimbench encoder\n")
    for name, shape, values in entries:
        found.update(f"{name} {list(shape)}\n".encode())
        found.update(values)
    return found.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of an encoder's `tensors` with canonical names; it does not depend on their dtype."""
    arrays = ((name, tensors[name].detach().cpu().float().contiguous().numpy()) for name in sorted(tensors))
    return digest((name, array.shape, array.tobytes()) for name, array in arrays)


class Hashes(NamedTuple):
    """The hashes of a checkpoint's content."""

    content: str  # of the tensors and of what else changes the features
    tensors: str  # of the tensors alone: the content hash of earlier releases, which old results hold

    @classmethod
    def of(cls, tensors: str, meaning: Mapping[str, Any] | None) -> Hashes:
        """Return the hashes for a digest of tensors and `info.meaning`; None if only the tensors are known."""
        if meaning is None:
            return cls(tensors, tensors)
        text = f"mimbench encoder, schema 2\n{tensors}\n{json.dumps(meaning, sort_keys=True)}"
        return cls(hashlib.sha256(text.encode()).hexdigest(), tensors)
