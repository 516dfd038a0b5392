"""A map of weights for each training image, kept in a file that all processes map into their memory.

    RUN/weight_maps/epoch-00041.safetensors      made at the start of epoch 41 (from 0), in force until the next

    maps = WeightMaps(run.path / "weight_maps", Subject.of(folder, grid), label="AMT")
    maps.write(41, batches_of_maps)              # every process its share, in the order of the images
    maps[index_B]                                # (B, h, w) float32

One file for each renewal, written whole or not at all. The number of the one in force is in the run's checkpoints; a
file goes once no checkpoint can ask for it any more (`prune`). So a run that is killed at any moment and started again
draws by the same weights as one that never stopped.

Maps are float16: 0.5 GB for ImageNet's 1.28 million images of 14 x 14, half of what the authors' code keeps in the
memory of every process. A weight is off by 1/2048 of itself at the most, and so is the chance of its patch to be drawn;
a map made by an encoder changes by far more from one renewal to the next.

The file is in safetensors' format, one tensor `maps` (N, h, w), and says in its metadata which images it is of. A map
of other images, or for another grid, is refused.
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
    """What maps are of: which images, in which order, and how many patches each."""

    images: int
    rows: int
    columns: int
    names: str  # sha256 of the images' paths in their data set, in order

    @classmethod
    def of(cls, folder: ImageFolder, grid: tuple[int, int]) -> Subject:
        """The images of `folder`; that it lies elsewhere does not make it another one."""
        digest = hashlib.sha256()
        root = f"{folder.paths.root}/"
        for index in range(len(folder)):
            digest.update(os.fsencode(folder.paths.text(index).removeprefix(root)) + b"\0")
        return cls(len(folder), *grid, digest.hexdigest())

    @property
    def bytes_each(self) -> int:
        """Of one map."""
        return 2 * self.rows * self.columns


class WeightMaps:
    """The maps in force, of `subject`, in `directory`; none until they are written or a checkpoint names them.

    Its `state_dict` and `load_state_dict` are for checkpoints (`Training.extra_state`).
    """

    def __init__(self, directory: Path, subject: Subject, label: str) -> None:
        """`label`: what made the maps, for people who look into a file."""
        self.directory, self.subject, self.label = directory, subject, label
        self.epoch: int | None = None  # whose start the maps in force were made at
        self._maps: Any = None

    def path(self, epoch: int) -> Path:
        """The file of the maps made at the start of `epoch`."""
        return self.directory / f"epoch-{epoch:05d}.safetensors"

    def __getitem__(self, index_B: Tensor) -> Tensor:
        """The maps of the images at `index_B`, (B, h, w) float32 in [0, 1]."""
        assert self._maps is not None, "no maps are in force"
        return torch.from_numpy(self._maps[index_B.cpu().numpy()]).float()

    def write(self, epoch: int, maps: Iterable[Tensor]) -> None:
        """Write the maps made at the start of `epoch` and put them in force; all processes call this together.

        Args:
            epoch: from 0.
            maps: (any number, h, w) each; in all, those of the images in `share()`, in order.

        Raises:
            OSError: if the file cannot be written; maps written before stay.
        """
        with self._shared_file(epoch) as (path, offset), path.open("r+b") as file:
            file.seek(offset + self.share().start * self.subject.bytes_each)
            for part in maps:
                file.write(part.to("cpu", torch.float16).contiguous().numpy().tobytes())
        self.use(epoch)

    def share(self) -> range:
        """The images this process makes maps of: a contiguous part, as equal as can be."""
        return part_of_rank(self.subject.images)

    @contextmanager
    def _shared_file(self, epoch: int) -> Iterator[tuple[Path, int]]:
        """A file of the right size for all processes to write into, and where in it the maps begin.

        The first process makes it and, when all are done, puts it in place.
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
        """Put the maps made at the start of `epoch` in force.

        Raises:
            FileNotFoundError: if there are none.
            ValueError: if the file is damaged, or of other images or another grid.
        """
        path = self.path(epoch)
        if not path.is_file():
            raise FileNotFoundError(f"the weight maps {path} are gone")
        _must_be_of(self.subject, path)
        shape = (self.subject.images, self.subject.rows, self.subject.columns)
        with path.open("rb") as file:
            offset = 8 + struct.unpack("<Q", file.read(8))[0]
        self._maps, self.epoch = np.memmap(path, np.float16, "r", offset, shape), epoch

    def prune(self, oldest: int | None) -> None:
        """Delete the files of maps older than those made at the start of epoch `oldest`; None keeps all."""
        if oldest is None or rank_and_world()[0] != 0:
            return
        for path in self.directory.glob("epoch-*.safetensors"):
            if (found := NAME.fullmatch(path.name)) and int(found[1]) < oldest:
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: which maps are in force. The maps themselves stay where they are."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the maps in force that were so when the checkpoint was written.

        If their file is gone none are, and it is for the run to make them again.

        Raises:
            ValueError: if the file is damaged, or of other images or another grid.
        """
        self.epoch = self._maps = None
        if state["epoch"] is not None:
            try:
                self.use(state["epoch"])
            except FileNotFoundError as error:
                log.warning("%s: they are made again, by the encoder as it is now, which is not quite the same", error)


def _must_be_of(subject: Subject, path: Path) -> None:
    """Refuse a file that does not hold maps of `subject`.

    Raises:
        ValueError: naming it.
    """
    try:
        with safe_open(path, framework="np") as handle:
            about = json.loads((handle.metadata() or {})[METADATA])
            found = Subject(**{name: about[name] for name in asdict(subject)})
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged, or holds no weight maps: delete it") from None
    if found != subject:
        raise ValueError(
            f"{path} holds weight maps of {found.images} images on a grid of {found.rows} x {found.columns}, and this "
            f"run has {_other(subject, found)}: delete {path.parent} and they are made again, or start a run of its "
            "own for these data"
        )


def _other(subject: Subject, found: Subject) -> str:
    sizes = f"{subject.images} on {subject.rows} x {subject.columns}"
    return sizes if (subject.images, subject.rows) != (found.images, found.rows) else "as many, but other images"
