"""Read images packed into a few large files by `mimbench data shrink` (engine/data/shrink.py), in any order.

ROOT/shrink.json                      the size and quality of the images
ROOT/train/00000.tar 00001.tar ...    ordinary tar files, <class>/<name>.jpg, in the order of class and name
ROOT/train/index.safetensors          the position and class of each image; written last
ROOT/val/...                          (a data set without splits has these files in ROOT itself)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.folders import Paths

SCHEMA = 1
INDEX, ABOUT = "index.safetensors", "shrink.json"

# N images of a split


def packed(directory: Path) -> bool:
    """Return whether `directory` holds packed images.

    Raises:
        UnfitError: (a ValueError) if the packing was interrupted and not resumed.
    """
    if (directory / INDEX).is_file():
        return True
    if (directory / "00000.tar").is_file() and any((at / ABOUT).is_file() for at in (directory, directory.parent)):
        raise unfit(directory, "is only partly packed", "repeat the same `mimbench data shrink`, which resumes")
    return False


class Shards:
    """The packed images of one split, readable in any order; item `i` is the path that image i would have unpacked.

    Attributes:
        root: the folder of the split.
        classes: names of the classes.
        labels: int64 (N,), indices into `classes`.
        description: the shrinking, in words.
    """

    def __init__(self, root: Path) -> None:
        """Open the packed split in the folder `root`.

        Raises:
            UnfitError: (a ValueError) if the index cannot be read, or a tar is missing or truncated.
        """
        self.root = root
        tensors, about = _read_index(root / INDEX)
        self.labels: Tensor = tensors["labels"]
        self.classes: list[str] = about["classes"]
        self.description: str = about["description"]
        self._paths = Paths(root, about["names"])
        self._shard_N, self._start_N, self._size_N = (tensors[name].numpy() for name in ("shard", "start", "size"))
        self._open: dict[int, int] = {}  # descriptors by shard, opened by each process when it first needs them
        for shard in np.unique(self._shard_N).tolist():
            last = int((self._shard_N == shard).nonzero()[0][-1])
            _must_hold(tar_path(root, shard), int(self._start_N[last] + self._size_N[last]))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Path:
        return self._paths[index]

    def name(self, index: int) -> str:
        """The path below the root."""
        return self._paths.name(index)

    def text(self, index: int) -> str:
        """The path as a string."""
        return self._paths.text(index)

    def encoded(self, index: int) -> bytearray:
        """Return the image file's bytes.

        Raises:
            OSError: if the tar cannot be read.
            UnfitError: (a ValueError) if the tar was truncated since it was opened.
        """
        shard, size = int(self._shard_N[index]), int(self._size_N[index])
        if shard not in self._open:
            self._open[shard] = os.open(tar_path(self.root, shard), os.O_RDONLY)
        content = bytearray(os.pread(self._open[shard], size, int(self._start_N[index])))
        if len(content) < size:
            raise unfit(tar_path(self.root, shard), "is truncated", "remove it and repeat `mimbench data shrink`")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # descriptors are not valid in another process

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def tar_path(root: Path, shard: int) -> Path:
    """Return the path of shard number `shard` of the packed split in `root`."""
    return root / f"{shard:05}.tar"


def _must_hold(tar: Path, size: int) -> None:
    if not tar.is_file() or tar.stat().st_size < size:
        what = "is truncated" if tar.is_file() else "is missing"
        raise unfit(tar, what, f"remove it and {INDEX}, and repeat `mimbench data shrink`")


def _read_index(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            about = json.loads((file.metadata() or {})["mimbench"])
        about["names"] = bytes(tensors["names"].numpy()).decode("utf-8", "surrogateescape").split("\0")
        if about["schema"] != SCHEMA:
            raise ValueError(f"schema {about['schema']}, but only {SCHEMA} is supported")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise unfit(path, f"cannot be read ({error})", "remove it and repeat `mimbench data shrink`") from None
    return tensors, about
