"""Decode every image of a data set once, to find those that would stop a run.

More than a few thousand images are decoded by one process per core; ImageNet takes about half an hour on two cores.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from mimbench.engine.data.datasets import Finding, UnfitError
from mimbench.engine.data.decoding import opened
from mimbench.engine.data.folders import Files
from mimbench.engine.data.images import decode
from mimbench.engine.run.bar import track

FEW = 2_000  # images: below this, starting processes takes longer than decoding
MODES = {
    "L": "greyscale", "P": "palette", "1": "black and white", "LA": "greyscale with transparency",
    "PA": "palette with transparency", "RGBA": "with transparency", "CMYK": "CMYK",
    "I;16": "16-bit greyscale", "I;16B": "16-bit greyscale", "I": "32-bit greyscale", "F": "float greyscale",
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """The check of one image: a finding, or its mode, size and digest."""

    path: Path
    finding: Finding | None = None
    mode: str = ""  # Pillow's name: RGB, L, CMYK, ...
    height: int = 0
    width: int = 0
    digest: bytes = b""  # of the file's bytes


class _Images(Dataset[Decoded]):
    def __init__(self, paths: Files, upright: bool) -> None:
        self.paths, self.upright = paths, upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Decoded:
        path = self.paths[index]
        try:
            encoded = self.paths.encoded(index)
            height, width = decode(encoded, str(path), upright=self.upright).shape[-2:]
        except UnfitError as error:
            return Decoded(path, error.finding)
        except FileNotFoundError:
            return Decoded(path, Finding("error", str(path), "does not exist", "unpack the images again"))
        except OSError as error:
            return Decoded(path, Finding("error", str(path), error.strerror or str(error), "make the file readable"))
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        return Decoded(path, None, _mode(encoded), height, width, digest)


def _mode(encoded: bytearray) -> str:
    with opened(encoded) as header:
        return header.mode


def decoded(paths: Files, what: str, *, upright: bool = False) -> Iterator[Decoded]:
    """Decode `paths` in order, with a progress bar named `what`. `upright`: sizes are those after EXIF rotation."""
    workers = (os.cpu_count() or 1) if len(paths) > FEW else 0
    loader = DataLoader(_Images(paths, upright), batch_size=16, num_workers=workers, collate_fn=list)
    yield from track((image for batch in loader for image in batch), what, len(paths))


def not_rgb(modes: Mapping[str, int], directory: Path) -> Iterator[Finding]:
    """Yield a note if some images are not RGB; `modes` counts images by Pillow's mode."""
    total = sum(modes.values())
    others = {mode: count for mode, count in sorted(modes.items()) if mode != "RGB"}
    if others:
        counted = ", ".join(f"{count:,} {MODES.get(mode, mode)}" for mode, count in others.items())
        what = f"{sum(others.values()):,} of {total:,} images are not RGB: {counted}"
        yield Finding("note", str(directory), what, "they are converted to RGB")
