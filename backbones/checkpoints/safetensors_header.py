"""Read and make the header of a safetensors file: tensors, their places and metadata. Does not import torch.

    header = read_header(Path("encoder.safetensors"))
    header.metadata["mimbench"], header.places[0].shape
    file.write(header_bytes({"features": ("F16", (10, 768), 10 * 768 * 2)}, {"mimbench": "{}"}))

safetensors' own functions need all tensors in memory, twice, or make files that other users cannot read (mode 600).

A file is 8 bytes with the length of the header (little-endian), the header (JSON), and the tensors one after another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

METADATA = "mimbench"  # the metadata key of our encoders; its value is `info.EncoderInfo` as JSON
LONGEST = 100_000_000  # bytes of a header, the limit of the format
ALIGNMENT = 4096  # bytes; the first tensor begins at a multiple, so that a page of memory can be mapped to it


class Place(NamedTuple):
    """The place of a tensor in a file."""

    name: str
    dtype: str  # safetensors' name: "F32", "BF16"
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int

    @property
    def numbers(self) -> int:
        """The number of values in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of a file."""

    metadata: Mapping[str, str]
    places: tuple[Place, ...]  # sorted by name
    size: int  # bytes of the whole file, according to the header

    def place(self, name: str) -> Place:
        """Return the place of the tensor called `name`.

        Raises:
            KeyError: if the file has no such tensor.
        """
        return {place.name: place for place in self.places}[name]


def header_bytes(tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str]) -> bytes:
    """Return what stands before the tensors in a file that holds them in this order.

    Args:
        tensors: safetensors' name of the type, the shape and the bytes of each tensor.
        metadata: texts.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (kind, shape, size) in tensors.items():
        begin, end = end, end + size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_header(file: Path) -> Header:
    """Read the header of the safetensors file at `file`.

    Raises:
        ValueError: in one line, if the file is not a safetensors file, its header is damaged, or it is cut short.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > LONGEST:
            raise ValueError(f"{file} is not a safetensors file: its header would have {length:,} bytes")
        text = handle.read(length)
    if len(text) < length:
        raise ValueError(f"{file} is cut short: its header has {length:,} bytes, the file {size:,}; fetch it again")
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        places = tuple(_place(name, entry, 8 + length) for name, entry in sorted(entries.items()))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{file} has a damaged safetensors header; fetch it again") from None
    whole = max((place.end for place in places), default=8 + length)
    if size < whole:
        raise ValueError(f"{file} is cut short: it has {size:,} of {whole:,} bytes; fetch it again")
    return Header(metadata, places, whole)


def _place(name: str, entry: Mapping[str, Any], start: int) -> Place:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    return Place(name, str(entry["dtype"]), tuple(int(side) for side in entry["shape"]), begin, end)
