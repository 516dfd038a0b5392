"""Files for the tests of layouts: small JPEGs and tars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02129604", "n15075141")
IDS = {"n01440764": 3, "n01443537": 1, "n02129604": 4, "n15075141": 2}  # of the kit: not in the order of wnids
TRAIN, VAL = (3, 2, 4, 1), (2, 3, 2, 1)  # images of each class


def jpeg(seed: int, size: tuple[int, int] = (20, 17)) -> bytes:
    """A small JPEG that is like no other."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file in a tar."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def tar_of(files: Iterable[tuple[str, bytes]], path: Path | None = None, mode: str = "w") -> bytes:
    """A tar of `files`, also written to `path`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:  # type: ignore[call-overload]
        for name, inner in files:
            add(tar, name, inner)
    if path is not None:
        path.write_bytes(content.getvalue())
    return content.getvalue()


def class_tar(folder: Path) -> bytes:
    """One class as a tar, its images in no particular order, as in ImageNet's."""
    return tar_of((file.name, file.read_bytes()) for file in sorted(folder.iterdir(), key=lambda file: file.name[::-1]))
