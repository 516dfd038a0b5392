"""Features of a data set on disk, computed once per encoder and used by k-NN, the fast linear probe and few-shot.

    ROOT/.features/<key>/train-avg-12-tokens.safetensors     split, pool, block, norm; beside the runs under ROOT
    ROOT/.features/<key>/parts/...                           unfinished features

    store = FeatureStore(directory, encoder, splits, view)
    store.make(sources)                  # encodes what is missing, divided among the processes
    features_ND = store.read("train", source)            # memory-mapped

A file has safetensors' format with one tensor `features` (N, D). Its metadata name the encoder (by its hash), the
images and the crops; a file that does not match is an error. All missing sources of a split are computed in one pass
through the encoder, in parts of `PART` images that are written atomically and divided among the processes. After an
interruption, the next run starts at the first missing part. fp16 is exact to 1 in 2048; a value above its maximum of
65504 or one that is not finite stops the run.

The folder may be deleted when no run uses it (`mimbench gc` does so).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
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

from mimbench.backbones.checkpoints.safetensors_header import header_bytes, read_header
from mimbench.cls.data.crops import CentreCrops, Splits, resized_side
from mimbench.cls.frozen.features import FrozenEncoder, Source, encoded
from mimbench.cls.frozen.fingerprint import encoder_fingerprint, split_fingerprint
from mimbench.engine.data.batches import evaluation_loader
from mimbench.engine.data.datasets import Split
from mimbench.engine.data.waiting import Encoding
from mimbench.engine.run.atomic import replacing, sweep, write_with
from mimbench.engine.run.bar import track
from mimbench.engine.run.cores import Workers
from mimbench.engine.run.file_lock import file_lock
from mimbench.engine.run.process import announced, meet, rank_and_world

log = logging.getLogger(__name__)

SCHEMA = 1
METADATA = "mimbench-features"  # key in a file's metadata
PART = 8192  # images; 12 MiB per source of a ViT-B
TYPES = {"fp16": torch.float16, "fp32": torch.float32}
NAMES = {"fp16": "F16", "fp32": "F32"}  # safetensors' names

# N images of a split, B of a batch, D width


@dataclass(frozen=True)
class Made:
    """What features were computed from, and how; equal values mean equal features."""

    encoder: str  # fingerprints
    images: str
    image: int
    short: int  # length of the short side after resizing
    precision: str  # of matrix products
    stored: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class View:
    """How images are prepared for the encoder, and how features are stored."""

    image: int
    eval_crop: float | None
    workers: Workers = 0
    stored: str = "fp16"


class FeatureStore:
    """Features of both splits of a data set from one encoder. `encoded` counts the images encoded by this process."""

    def __init__(
        self, root: Path, encoder: FrozenEncoder, splits: Splits, view: View, *, fixed: Path | None = None
    ) -> None:
        """Open the store under `root`, or the directory `fixed`, which is only read.

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
        self.encoded, self.encoding = 0, Encoding()

    @property
    def key(self) -> str:
        """Name of the directory; it differs for other encoders, images, crops and precisions."""
        whole = json.dumps([asdict(made) for made in self.made.values()], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def path(self, split: Split, source: Source) -> Path:
        """Return the file of a source's features of a split."""
        return self.directory / f"{split}-{source.name}.safetensors"

    def labels(self, split: Split) -> Tensor:
        """Return the labels (N,) of a split."""
        return _folders(self.splits)[split].labels

    def about(self, split: Split, source: Source) -> dict[str, Any]:
        """Return the expected metadata of a file of features."""
        return {**asdict(self.made[split]), "split": split, "source": source.name}

    def read(self, split: Split, source: Source) -> Tensor:
        """Return the features (N, D) of a split, memory-mapped; only a source of several pools is copied to memory.

        Raises:
            FileNotFoundError: if they have not been computed.
            ValueError: if the file is damaged, or from another encoder or other images.
        """
        parts = [self._open(split, part) for part in source.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def make(self, sources: Sequence[Source]) -> None:
        """Compute the missing features of `sources` for both splits; all processes must call it.

        Raises:
            FileNotFoundError: if they are not in the directory `fixed`.
            ValueError: if a value does not fit the stored type or is not finite, an image cannot be decoded,
                or an existing file is damaged or holds other features.
            OSError: if a file cannot be read or written.
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
            f"{', '.join(held) or 'no features'}; remove the setting `features` to compute them"
        )

    def _open(self, split: Split, source: Source) -> Tensor:
        path, images = self.path(split, source), len(self.labels(split))
        found, shape, offset = _header(path)
        wanted = self.about(split, source)
        if found != wanted:
            raise ValueError(f"{path} holds features {_difference(found, wanted)}: {self._way_out()}")
        if shape != [images, self.encoder.token_width]:
            raise ValueError(f"{path} holds features of shape {shape}, not {images} images: {self._way_out()}")
        return torch.from_numpy(np.memmap(path, _numpy(self.view.stored), "c", offset, (shape[0], shape[1])))

    def _way_out(self) -> str:
        return (
            "name another directory, or remove the setting `features`"
            if self.fixed
            else "delete it to compute it again"
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock these features against other single-process runs; multi-process runs may compute the same ones twice."""
        if self.fixed is not None or rank_and_world()[1] > 1:
            yield
            return
        with file_lock(self.directory / "lock", f"computing the features in {self.directory}"):
            sweep(self.directory)
            yield


class _Extraction:
    """Computation of the features of the `lacking` sources for one split."""

    def __init__(self, store: FeatureStore, split: Split, lacking: Sequence[Source]) -> None:
        self.store, self.split, self.lacking = store, split, lacking
        self.folder = _folders(store.splits)[split]
        names = ",".join(source.name for source in lacking)
        self.mark = hashlib.sha256(names.encode()).hexdigest()[:8]  # other sources have other parts
        self.count = math.ceil(len(self.folder) / PART)

    def run(self) -> None:
        """Encode this process's missing parts; rank 0 then joins all parts."""
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
        """Write the parts `numbers`; one loader reads their images ahead."""
        if not numbers:
            return
        view, encoder = self.store.view, self.store.encoder
        indices = [index for number in numbers for index in self._images(number)]
        crops = CentreCrops(self.folder, view.image, view.eval_crop)
        loader = evaluation_loader(Subset(crops, indices), encoder.eval_batch, view.workers)
        measured = self.store.encoding.over(loader, loader.num_workers)
        batches = track(measured, f"encoding batches of {self.split} images", len(loader))
        held: list[list[Tensor]] = []
        for features in encoded(encoder, batches, self.lacking):
            held.append(features)
            while numbers and sum(len(each[0]) for each in held) >= len(self._images(numbers[0])):
                held = [self._write(numbers[0], held)]
                numbers = numbers[1:]
        self.store.encoded += len(indices)

    def _write(self, number: int, held: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Write part `number` from the first features in `held`; return the remaining features."""
        images = self._images(number)
        whole = [torch.cat(of_source) for of_source in zip(*held, strict=True)]
        tensors = {
            source.name: self._narrowed(source, features[: len(images)], images)
            for source, features in zip(self.lacking, whole, strict=True)
        }
        write_with(self._part(number), lambda temporary: temporary.write_bytes(save(tensors)))
        return [features[len(images) :] for features in whole]

    def _narrowed(self, source: Source, features_BD: Tensor, images: range) -> Tensor:
        """Return features in the stored type.

        Raises:
            ValueError: if features are not finite or do not fit the type; names the first such image.
        """
        stored = features_BD.to(TYPES[self.store.view.stored])
        if stored.isfinite().all():
            return stored.contiguous()
        row = int((~stored.isfinite()).any(1).nonzero()[0])
        name, greatest = self.folder.paths[images[row]], float(features_BD[row].abs().max())
        if not math.isfinite(greatest):
            raise ValueError(
                f"the feature {source.name} of {name} is NaN or infinite: try compute.precision=fp32; if the error "
                f"stays, the encoder's weights are broken"
            )
        raise ValueError(
            f"the feature {source.name} of {name} reaches {greatest:.0f}, above fp16's maximum 65504: use stored=fp32 "
            f"(twice the size)" + ("" if source.norm == "pooled" else ", or norm=pooled, which standardises")
        )

    def _assemble(self) -> None:
        """Join the parts into one file per source, and delete them."""
        with suppress(FileNotFoundError):  # another run has joined and deleted the same parts
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
        tensor = (NAMES[view.stored], (len(self.folder), width), size)
        return header_bytes({"features": tensor}, {METADATA: json.dumps(about)})


def _folders(splits: Splits) -> dict[Split, Any]:
    return {"train": splits.train, "val": splits.val}


def _numpy(stored: str) -> type[np.floating[Any]]:
    return np.float16 if stored == "fp16" else np.float32


def _header(path: Path) -> tuple[dict[str, Any], list[int], int]:
    """Return the metadata of a file of features, its shape, and the offset of its features.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a file of features, or is truncated.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the features {path} do not exist")
    try:
        header = read_header(path)
        about: dict[str, Any] = json.loads(header.metadata[METADATA])
        place = header.place("features")
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged or holds no features: delete it to compute it again") from None
    return about, list(place.shape), place.begin


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the first difference between stored and wanted features, in words.

    The image size comes first: the encoder's position table is resized to it, which also changes the encoder's hash.
    """
    if found.get("image", wanted["image"]) != wanted["image"]:
        return f"computed with image={found['image']}, but this run has image={wanted['image']}"
    for name, words in {"encoder": "of another encoder", "images": "of other images"}.items():
        if found.get(name) != wanted[name]:
            return f"{words} ({str(found.get(name))[:10]}, but this run has {wanted[name][:10]})"
    name = next((name for name in wanted if found.get(name) != wanted[name]), "schema")
    return f"computed with {name}={found.get(name)}, but this run has {name}={wanted[name]}"
