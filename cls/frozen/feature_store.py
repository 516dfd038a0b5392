"""Features of a data set on disk, made once for each encoder and used by k-NN, the fast linear probe and few-shot.

    ROOT/.features/<key>/train-avg-12-tokens.safetensors     split, pool, block, norm; beside the runs under ROOT
    ROOT/.features/<key>/parts/...                           what is being made

    store = FeatureStore(directory, encoder, splits, view)
    store.make(sources)                  # encodes what is not there yet; every process its share
    features_ND = store.read("train", source)            # mapped into memory, not read

A file is in safetensors' format, one tensor `features` (N, D), and says in its metadata which encoder (by its hash),
which images and which crops it is of; one of others is refused. All sources of a split that are lacking come from one
pass through the encoder. It is made in parts of `PART` images, each written whole or not at all, dealt out to the
processes: what was killed goes on with the first part that is missing. fp16 is exact to 1 in 2048; a value beyond its
65504 stops the run, and so does one that is not finite.

The folder may be deleted whenever no run uses it (`mimbench gc` does).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Subset

from mimbench.backbones.checkpoints.safetensors_header import read_header
from mimbench.cls.data.crops import CentreCrops, Splits, resized_side
from mimbench.cls.frozen.features import FrozenEncoder, Source, encoded
from mimbench.cls.frozen.fingerprint import encoder_fingerprint, split_fingerprint
from mimbench.engine.data.batches import evaluation_loader
from mimbench.engine.data.datasets import Split
from mimbench.engine.run.atomic import replacing, sweep, write_with
from mimbench.engine.run.bar import track
from mimbench.engine.run.file_lock import file_lock
from mimbench.engine.run.process import announced, meet, rank_and_world

log = logging.getLogger(__name__)

SCHEMA = 1
METADATA = "mimbench-features"  # the key in a file's metadata
PART = 8192  # images; 12 MiB for each source of a ViT-B
ALIGNMENT = 4096  # of the first feature in its file
TYPES = {"fp16": torch.float16, "fp32": torch.float32}
NAMES = {"fp16": "F16", "fp32": "F32"}  # safetensors'

# N images of a split, B of a batch, D width


@dataclass(frozen=True)
class Made:
    """What features are of, and how they were made: features of two equal ones are the same."""

    encoder: str  # fingerprints
    images: str
    image: int
    short: int  # to which the short side was resized
    precision: str  # that matrix products ran in
    stored: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class View:
    """How images are shown to the encoder, and features are kept."""

    image: int
    eval_crop: float | None
    workers: int = 0
    stored: str = "fp16"


class FeatureStore:
    """Features of both splits of a data set by one encoder. `encoded` counts the images that went through it."""

    def __init__(
        self, root: Path, encoder: FrozenEncoder, splits: Splits, view: View, *, fixed: Path | None = None
    ) -> None:
        """Look under `root`; or in the directory `fixed` alone, to which nothing is written.

        Raises:
            OSError: if an image cannot be read.
        """
        self.encoder, self.splits, self.view, self.fixed = encoder, splits, view, fixed
        short, precision = resized_side(view.image, view.eval_crop), str(encoder.dtype or torch.float32)
        by = encoder_fingerprint(encoder)
        self.made: dict[Split, Made] = {
            split: Made(by, split_fingerprint(folder), view.image, short, precision, view.stored)
            for split, folder in _folders(splits).items()
        }
        self.directory = root / ".features" / self.key if fixed is None else fixed
        self.encoded = 0

    @property
    def key(self) -> str:
        """The name of the directory: features of other encoders, images, crops or precisions are in other ones."""
        whole = json.dumps([asdict(made) for made in self.made.values()], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def path(self, split: Split, source: Source) -> Path:
        """The file of a source's features of a split."""
        return self.directory / f"{split}-{source.name}.safetensors"

    def labels(self, split: Split) -> Tensor:
        """The labels (N,) of a split."""
        return _folders(self.splits)[split].labels

    def about(self, split: Split, source: Source) -> dict[str, Any]:
        """What a file of features says it is of."""
        return {**asdict(self.made[split]), "split": split, "source": source.name}

    def read(self, split: Split, source: Source) -> Tensor:
        """The features (N, D) of a split, mapped into memory; only a source of several parts is copied there.

        Raises:
            FileNotFoundError: if they have not been made.
            ValueError: if the file is damaged, or of another encoder or other images.
        """
        parts = [self._open(split, part) for part in source.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def make(self, sources: Sequence[Source]) -> None:
        """Have the features of `sources` for both splits; all processes call this together.

        Raises:
            FileNotFoundError: if they are not in the directory that was named.
            ValueError: if a value does not fit the type it is stored in or is not finite, an image cannot be decoded,
                or a file that is there is damaged or of other features.
            OSError: if something cannot be read or written.
        """
        wanted = list(dict.fromkeys(part for source in sources for part in source.parts))
        with self._alone():
            for split in _folders(self.splits):
                while lacking := announced([source for source in wanted if not self.path(split, source).is_file()]):
                    if self.fixed is not None:
                        raise FileNotFoundError(self._not_there(split, lacking))
                    _Extraction(self, split, lacking).run()
                for source in wanted:
                    self._open(split, source)

    def _not_there(self, split: Split, lacking: Sequence[Source]) -> str:
        held = sorted(file.stem for file in self.directory.glob("*.safetensors"))
        return (
            f"{self.path(split, lacking[0])} does not exist: features={self.directory} holds "
            f"{', '.join(held) or 'no features'}; leave `features` out and they are made"
        )

    def _open(self, split: Split, source: Source) -> Tensor:
        path, images = self.path(split, source), len(self.labels(split))
        found, shape, offset = _header(path)
        wanted = self.about(split, source)
        if found != wanted:
            raise ValueError(f"{path} holds features {_difference(found, wanted)}: {self._way_out()}")
        if shape != [images, self.encoder.token_width]:
            raise ValueError(f"{path} holds features of shape {shape}, not of {images} images: {self._way_out()}")
        return torch.from_numpy(np.memmap(path, _numpy(self.view.stored), "c", offset, (shape[0], shape[1])))

    def _way_out(self) -> str:
        return "name another directory, or leave `features` out" if self.fixed else "delete it, and it is made again"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, no other run of one process makes these features; of runs of several, both may, and agree."""
        if self.fixed is not None or rank_and_world()[1] > 1:
            yield
            return
        with file_lock(self.directory / "lock", f"making the features in {self.directory}"):
            sweep(self.directory)
            yield


class _Extraction:
    """Making the features of `lacking` sources for one split."""

    def __init__(self, store: FeatureStore, split: Split, lacking: Sequence[Source]) -> None:
        self.store, self.split, self.lacking = store, split, lacking
        self.folder = _folders(store.splits)[split]
        names = ",".join(source.name for source in lacking)
        self.mark = hashlib.sha256(names.encode()).hexdigest()[:8]  # parts of other sources are others
        self.count = math.ceil(len(self.folder) / PART)

    def run(self) -> None:
        """Every process encodes its parts that are not there, and the first puts all together."""
        rank, world = rank_and_world()
        self._encode([number for number in range(rank, self.count, world) if not self._part(number).is_file()])
        meet()
        if rank == 0:
            self._assemble()
        meet()

    def _part(self, number: int) -> Path:
        return self.store.directory / "parts" / f"{self.split}-{self.mark}-{number:05d}.safetensors"

    def _images(self, number: int) -> range:
        return range(number * PART, min((number + 1) * PART, len(self.folder)))

    def _encode(self, numbers: Sequence[int]) -> None:
        """Write the parts `numbers`; their images come from one loader, which reads ahead."""
        if not numbers:
            return
        view, encoder = self.store.view, self.store.encoder
        indices = [index for number in numbers for index in self._images(number)]
        crops = CentreCrops(self.folder, view.image, view.eval_crop)
        loader = evaluation_loader(Subset(crops, indices), encoder.eval_batch, view.workers)
        batches = track(loader, f"encoding batches of {self.split} images", len(loader))
        held: list[list[Tensor]] = []
        for features in encoded(encoder, batches, self.lacking):
            held.append(features)
            while numbers and sum(len(each[0]) for each in held) >= len(self._images(numbers[0])):
                held = [self._write(numbers[0], held)]
                numbers = numbers[1:]
        self.store.encoded += len(indices)

    def _write(self, number: int, held: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Write part `number` from the first of the features in `held`; what is left of them."""
        images = self._images(number)
        whole = [torch.cat(of_source) for of_source in zip(*held, strict=True)]
        tensors = {
            source.name: self._narrowed(source, features[: len(images)], images)
            for source, features in zip(self.lacking, whole, strict=True)
        }
        write_with(self._part(number), lambda temporary: temporary.write_bytes(save(tensors)))
        return [features[len(images) :] for features in whole]

    def _narrowed(self, source: Source, features_BD: Tensor, images: range) -> Tensor:
        """Features as they are stored.

        Raises:
            ValueError: naming the first image whose features are not finite, or do not fit.
        """
        stored = features_BD.to(TYPES[self.store.view.stored])
        if stored.isfinite().all():
            return stored.contiguous()
        row = int((~stored.isfinite()).any(1).nonzero()[0])
        name, greatest = self.folder.paths[images[row]], float(features_BD[row].abs().max())
        if not math.isfinite(greatest):
            raise ValueError(
                f"the feature {source.name} of {name} is NaN or infinite: try compute.precision=fp32; if it stays, the "
                f"encoder is broken"
            )
        raise ValueError(
            f"the feature {source.name} of {name} reaches {greatest:.0f}, and fp16 ends at 65504: take stored=fp32 "
            f"(twice the size)" + ("" if source.norm == "pooled" else ", or norm=pooled, which standardises")
        )

    def _assemble(self) -> None:
        """One file of each source from the parts; then they go."""
        with suppress(FileNotFoundError):  # another run has put the same parts together, and away
            for source in self.lacking:
                with replacing(self.store.path(self.split, source)) as temporary, temporary.open("wb") as file:
                    file.write(self._file_header(source))
                    for number in range(self.count):
                        with safe_open(self._part(number), framework="np") as part:
                            file.write(part.get_tensor(source.name).tobytes())
        for number in range(self.count):
            self._part(number).unlink(missing_ok=True)

    def _file_header(self, source: Source) -> bytes:
        view, width = self.store.view, self.store.encoder.token_width
        about = self.store.about(self.split, source)
        size = len(self.folder) * width * TYPES[view.stored].itemsize
        tensor = {"dtype": NAMES[view.stored], "shape": [len(self.folder), width], "data_offsets": [0, size]}
        text = json.dumps({"__metadata__": {METADATA: json.dumps(about)}, "features": tensor}).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        return struct.pack("<Q", len(text)) + text


def _folders(splits: Splits) -> dict[Split, Any]:
    return {"train": splits.train, "val": splits.val}


def _numpy(stored: str) -> type[np.floating[Any]]:
    return np.float16 if stored == "fp16" else np.float32


def _header(path: Path) -> tuple[dict[str, Any], list[int], int]:
    """What a file of features says it is of, its shape, and where its features begin.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such file, or is cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the features {path} do not exist")
    try:
        header = read_header(path)
        about: dict[str, Any] = json.loads(header.metadata[METADATA])
        place = header.place("features")
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged, or holds no features: delete it, and it is made again") from None
    return about, list(place.shape), place.begin


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing in which features differ from those that are wanted, in words.

    Images of another size come first: the encoder's positions are brought to it, so that its hash differs for that.
    """
    if found.get("image", wanted["image"]) != wanted["image"]:
        return f"made with image={found['image']}, and this run has image={wanted['image']}"
    for name, words in {"encoder": "of another encoder", "images": "of other images"}.items():
        if found.get(name) != wanted[name]:
            return f"{words} ({str(found.get(name))[:10]}, and this run's is {wanted[name][:10]})"
    name = next((name for name in wanted if found.get(name) != wanted[name]), "schema")
    return f"made with {name}={found.get(name)}, and this run has {name}={wanted[name]}"
