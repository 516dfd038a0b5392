"""The digest of an encoder's tensors: sha256 of their names, shapes and float32 values, sorted by name.

Imports torch only for torch tensors. `backbones.content` documents which tensors of a file are hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

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
