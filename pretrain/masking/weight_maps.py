"""A map of weights for each training image, in a file that all processes map into memory.

    RUN/weight_maps/epoch-00041.safetensors      computed at the start of epoch 41 (from 0), used until the next

    maps = WeightMaps(run.path / "weight_maps", Subject.of(folder, grid), label="AMT")
    maps.write(41, batches_of_maps)              # each process writes its share, in the order of the images
    maps[index_B]                                # (B, h, w) float32

Each renewal writes one file, atomically. Checkpoints store the epoch of the current file; a file is deleted when no
checkpoint needs it any more (`prune`). So a run that is killed at any moment and restarted uses the same weights as one
that never stopped.

Maps are float16: 0.5 GB for ImageNet's 1.28 million images of 14 x 14, half of what the authors' code holds in the
memory of every process. The relative error of a weight, and of its patch's probability, is at most 1/2048; maps change
by far more from one renewal to the next.

The file is in safetensors' format, with one tensor `maps` (N, h, w); its metadata identify the images. Maps of other
images, or for another grid, are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimbench.engine.data.images import ImageFolder
from mimbench.engine.run.atomic import replacing
from mimbench.engine.run.process import announced, meet, part_of_rank, rank_and_world

log = logging.getLogger(__name__)

SCHEMA = 1
METADATA = "mimbench"  # the key in the file's metadata
NAME = re.compile(r"epoch-(\d{5,})\.safetensors")
ALIGNMENT = 4096  # of the first map in its file

# N images, B images of a batch, h x w the grid of patches


@dataclass(frozen=True)
class Subject:
    """The subject of maps: the images, their order, and the grid of patches."""

    images: int
    rows: int
    columns: int
    names: str  # sha256 of the images' paths in their data set, in order

    @classmethod
    def of(cls, folder: ImageFolder, grid: tuple[int, int]) -> Subject:
        """Return the subject of `folder`'s images; it does not depend on the folder's location."""
        digest = hashlib.sha256()
        root = f"{folder.paths.root}/"
        for index in range(len(folder)):
            digest.update(os.fsencode(folder.paths.text(index).removeprefix(root)) + b"\0")
        return cls(len(folder), *grid, digest.hexdigest())

    @property
    def bytes_each(self) -> int:
        """The size of one map in bytes."""
        return 2 * self.rows * self.columns


class WeightMaps:
    """The current maps of `subject`, in `directory`; none until they are written or a checkpoint names them.

    Its `state_dict` and `load_state_dict` are for checkpoints (`Training.extra_state`).
    """

    def __init__(self, directory: Path, subject: Subject, label: str) -> None:
        """`label`: the method that computed the maps, for readers of a file."""
        self.directory, self.subject, self.label = directory, subject, label
        self.epoch: int | None = None  # the epoch at whose start the current maps were computed
        self._maps: Any = None

    def path(self, epoch: int) -> Path:
        """Return the file of the maps computed at the start of `epoch`."""
        return self.directory / f"epoch-{epoch:05d}.safetensors"

    def __getitem__(self, index_B: Tensor) -> Tensor:
        """Return the maps of the images at `index_B`, (B, h, w) float32 in [0, 1]."""
        assert self._maps is not None, "there are no current maps"
        return torch.from_numpy(self._maps[index_B.cpu().numpy()]).float()

    def write(self, epoch: int, maps: Iterable[Tensor]) -> None:
        """Write the maps computed at the start of `epoch` and use them; all processes call this together.

        Args:
            epoch: from 0.
            maps: tensors (any number, h, w); together, the maps of the images in `share()`, in order.

        Raises:
            OSError: if the file cannot be written; earlier maps are kept.
        """
        with self._shared_file(epoch) as (path, offset), path.open("r+b") as file:
            file.seek(offset + self.share().start * self.subject.bytes_each)
            for part in maps:
                file.write(part.to("cpu", torch.float16).contiguous().numpy().tobytes())
        self.use(epoch)

    def share(self) -> range:
        """Return the images whose maps this process computes: a contiguous share; shares differ by at most one."""
        return part_of_rank(self.subject.images)

    @contextmanager
    def _shared_file(self, epoch: int) -> Iterator[tuple[Path, int]]:
        """Yield a file of the right size for all processes to write into, and the offset of the maps in it.

        The first process creates it and, when all are done, renames it.
        """
        header = self._header(epoch)
        if rank_and_world()[0] == 0:
            with replacing(self.path(epoch)) as temporary:
                with temporary.open("wb") as file:
                    file.write(header)
                    file.truncate(len(header) + self.subject.images * self.subject.bytes_each)
                announced(str(temporary))
                yield temporary, len(header)
                meet()
        else:
            yield Path(announced("")), len(header)
            meet()
        meet()

    def _header(self, epoch: int) -> bytes:
        subject = self.subject
        about = {"schema": SCHEMA, "epoch": epoch, "made_by": self.label, **asdict(subject)}
        tensor = {
            "dtype": "F16",
            "shape": [subject.images, subject.rows, subject.columns],
            "data_offsets": [0, subject.images * subject.bytes_each],
        }
        text = json.dumps({"__metadata__": {METADATA: json.dumps(about)}, "maps": tensor}).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    def use(self, epoch: int) -> None:
        """Use the maps computed at the start of `epoch`.

        Raises:
            FileNotFoundError: if there are none.
            ValueError: if the file is damaged, or belongs to other images or another grid.
        """
        path = self.path(epoch)
        if not path.is_file():
            raise FileNotFoundError(f"the weight maps {path} do not exist")
        _must_be_of(self.subject, path)
        shape = (self.subject.images, self.subject.rows, self.subject.columns)
        with path.open("rb") as file:
            offset = 8 + struct.unpack("<Q", file.read(8))[0]
        self._maps, self.epoch = np.memmap(path, np.float16, "r", offset, shape), epoch

    def prune(self, oldest: int | None) -> None:
        """Delete the files of maps older than those of epoch `oldest`; None keeps all."""
        if oldest is None or rank_and_world()[0] != 0:
            return
        for path in self.directory.glob("epoch-*.safetensors"):
            if (found := NAME.fullmatch(path.name)) and int(found[1]) < oldest:
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch of the current maps, for a checkpoint; the maps stay in their file."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Use the maps that were current when the checkpoint was written.

        If their file does not exist, there are no current maps, and the run must compute them again.

        Raises:
            ValueError: if the file is damaged, or belongs to other images or another grid.
        """
        self.epoch = self._maps = None
        if state["epoch"] is not None:
            try:
                self.use(state["epoch"])
            except FileNotFoundError as error:
                log.warning("%s: the current encoder computes them again, so they differ slightly", error)


def _must_be_of(subject: Subject, path: Path) -> None:
    """Check that a file holds maps of `subject`.

    Raises:
        ValueError: naming the file, if it does not.
    """
    try:
        with safe_open(path, framework="np") as handle:
            about = json.loads((handle.metadata() or {})[METADATA])
            found = Subject(**{name: about[name] for name in asdict(subject)})
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged or holds no weight maps: delete it") from None
    if found != subject:
        raise ValueError(
            f"{path} holds weight maps of {found.images} images on a grid of {found.rows} x {found.columns}, but this "
            f"run has {_other(subject, found)}: delete {path.parent} to compute them again, or start a new run for "
            "these data"
        )


def _other(subject: Subject, found: Subject) -> str:
    sizes = f"{subject.images} on {subject.rows} x {subject.columns}"
    return sizes if (subject.images, subject.rows) != (found.images, found.rows) else "as many, but other images"
