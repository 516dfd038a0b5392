"""The header of a safetensors file: which tensors are in it and where, and its metadata. Without torch.

    header = read_header(Path("encoder.safetensors"))
    header.metadata["mimbench"], header.places[0].shape

A file is 8 bytes with the length of the header (little-endian), the header (JSON), and the tensors one behind another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

METADATA = "mimbench"  # the metadata key of our encoders; its value is `info.EncoderInfo` as JSON
LONGEST = 100_000_000  # bytes of a header, by that format's own rule


class Place(NamedTuple):
    """Where a file holds a tensor."""

    name: str
    dtype: str  # safetensors' name: "F32", "BF16"
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    metadata: Mapping[str, str]
    places: tuple[Place, ...]  # sorted by name
    size: int  # bytes of the whole file, as the header has it

    def place(self, name: str) -> Place:
        """Where the tensor called `name` is.

        Raises:
            KeyError: if there is none.
        """
        return {place.name: place for place in self.places}[name]


def read_header(file: Path) -> Header:
    """The header of the safetensors file at `file`.

    Raises:
        ValueError: in one line, if the file is no safetensors file, its header is damaged, or it is cut short.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > LONGEST:
            raise ValueError(f"{file} is no safetensors file: its header would be {length:,} bytes")
        text = handle.read(length)
    if len(text) < length:
        raise ValueError(f"{file} is cut short: its header alone is {length:,} bytes, and {size:,} are here")
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        places = tuple(_place(name, entry, 8 + length) for name, entry in sorted(entries.items()))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{file} has a damaged safetensors header; fetch it again") from None
    whole = max((place.end for place in places), default=8 + length)
    if size < whole:
        raise ValueError(f"{file} is cut short: {size:,} of {whole:,} bytes are here; fetch it again")
    return Header(metadata, places, whole)


def _place(name: str, entry: Mapping[str, Any], start: int) -> Place:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    return Place(name, str(entry["dtype"]), tuple(int(side) for side in entry["shape"]), begin, end)
