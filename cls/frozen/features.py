"""Frozen features: the interface of the encoders of linear probe and k-NN, and the features of a whole split.

The result depends on which feature is evaluated. A `Source` defines a feature: the pool, the block and the norm.
`FrozenEncoder.describe` describes it in words, for `result.json`. The encoders are in cls/frozen/encoders.py, the
features on disk in cls/frozen/feature_store.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Subset

from mimbench.cls.config import Evaluation, FrozenPool, Norm
from mimbench.cls.data.crops import CentreCrops
from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.images import ImageFolder
from mimbench.engine.data.waiting import Encoding
from mimbench.engine.run.bar import track
from mimbench.engine.run.cores import Workers
from mimbench.engine.run.process import part_of_rank, rank_and_world
from mimbench.engine.run.ranks import patient_group

# B image of a batch, N image of a split, T token, D width, S side of an image


class Source(NamedTuple):
    """A feature: `pool` of the tokens after block `block` (1 to depth), normalised according to `norm`."""

    pool: FrozenPool
    block: int
    norm: Norm

    @property
    def name(self) -> str:
        """Name for files and metrics, such as `avg-12-tokens`."""
        return f"{self.pool}-{self.block}-{self.norm}"

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources that are concatenated to this one."""
        return (self._replace(pool="cls"), self._replace(pool="avg")) if self.pool == "both" else (self,)


def sources_of(pools: Sequence[FrozenPool], layers: int, norm: Norm, depth: int) -> list[Source]:
    """Return every pool of the last `layers` of `depth` blocks, starting with the last block.

    Raises:
        ValueError: if `layers` exceeds `depth`.
    """
    if layers > depth:
        raise ValueError(f"layers={layers} exceeds the encoder's {depth} blocks; use layers={depth} or fewer")
    return [Source(pool, block, norm) for block in range(depth, depth - layers, -1) for pool in pools]


@dataclass(frozen=True)
class FrozenEncoder(ABC):
    """The interface of frozen encoders: images to features, without training. See cls/frozen/encoders.py."""

    source: Source  # the feature returned by calling it
    device: torch.device
    dtype: torch.dtype | None
    eval_batch: int  # images per forward pass

    @property
    @abstractmethod
    def family(self) -> str | None:
        """Family of the encoder's checkpoint."""

    @property
    @abstractmethod
    def token_width(self) -> int:
        """Length of one token's feature."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks whose features can be read; the last one is the encoder's output."""

    @abstractmethod
    def describe(self, pool: FrozenPool, norm: Norm, where: str = "") -> str:
        """Return the description of a feature; `where` names the block."""

    @abstractmethod
    def facts(self, config: Evaluation) -> dict[str, Any]:
        """Return the facts of the evaluated encoder."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return JSON that is equal for encoders that compute the same features."""

    @abstractmethod
    def _read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        """Return the features (B, D), float32, of each of `sources` for uint8 images (B, 3, S, S)."""

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.token_width * len(self.source.parts)

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D), float32, of uint8 images (B, 3, S, S), on the encoder's device."""
        [features_BD] = self.read(images, [self.source])
        return features_BD

    @torch.no_grad()
    def read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        """Return the features (B, D) of each of `sources` from one pass through the encoder; float32, on its device."""
        parts = [self._read(part, sources) for part in images.split(self.eval_batch)]
        return [torch.cat(of_source) for of_source in zip(*parts, strict=True)]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the context that runs matrix products in `dtype`; None keeps float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def encoded(
    encoder: FrozenEncoder, batches: Iterable[tuple[Tensor, Any]], sources: Sequence[Source]
) -> Iterator[list[Tensor]]:
    """Yield the features of each of `sources`, in main memory, for each batch of images.

    On a GPU, a batch is started before the features of the previous batch are awaited, so that the GPU works while the
    next images are read.
    """
    waiting: list[tuple[list[Tensor], Callable[[], None]]] = []
    for images, *_ in batches:
        features = [found.to("cpu", non_blocking=True) for found in encoder.read(images, sources)]
        waiting.append((features, _arrival(encoder.device)))
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0))
    for features, arrival in waiting:
        yield _arrived(features, arrival)


def _arrival(device: torch.device) -> Callable[[], None]:
    """Return a function that waits for all work submitted to `device` so far."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def _arrived(features: list[Tensor], arrival: Callable[[], None]) -> list[Tensor]:
    arrival()
    return features


def features_of(
    encoder: FrozenEncoder,
    folder: ImageFolder,
    side: int,
    eval_crop: float | None,
    workers: Workers,
    encoding: Encoding | None = None,
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) and labels (N,) of a split's centre crops, in its order, on the encoder's device.

    Each process encodes its share of the batches of a single process, so the features are the same bit for bit, and
    receives the others'. All processes must call it. `encoding` measures the waits for images.
    """
    shares = [_images_of(rank, len(folder), encoder.eval_batch) for rank in range(rank_and_world()[1])]
    mine = shares[rank_and_world()[0]]
    crops = Subset(CentreCrops(folder, side, eval_crop), mine)
    loader = evaluation_loader(crops, encoder.eval_batch, workers)
    part_ND, done = torch.empty(len(mine), encoder.width), 0
    measured = (encoding or Encoding()).over(loader, loader.num_workers)
    batches = track(measured, f"encoding batches of {folder.split} images", len(loader))
    for [features_BD] in encoded(encoder, batches, [encoder.source]):
        part_ND[done : done + len(features_BD)] = features_BD
        done += len(features_BD)
    return _exchanged(part_ND.to(encoder.device), shares), folder.labels.to(encoder.device)


def _images_of(rank: int, images: int, batch: int) -> range:
    """Return the share of a process: whole batches, so that matrix products are those of a single process."""
    batches = part_of_rank(-(-images // batch), rank)
    return range(batches.start * batch, min(batches.stop * batch, images))


def _exchanged(part_ND: Tensor, shares: Sequence[range]) -> Tensor:
    """Return the rows of all processes, of which this one has `part_ND`."""
    if len(shares) == 1:
        return part_ND
    features_ND = part_ND.new_empty(shares[-1].stop, part_ND.shape[1])
    own = shares[rank_and_world()[0]]
    features_ND[own.start : own.stop] = part_ND
    dist.barrier(group=patient_group())  # shares of a slow node may take longer than NCCL waits
    for rank, share in enumerate(shares):
        if len(share):
            dist.broadcast(features_ND[share.start : share.stop], src=rank)
    return features_ND


class RowBatches(Batches):
    """Batches of rows in memory, in the order in which `Batches` would load their images.

    Args:
        rows: maps indices (B,) to the batch.
        samples: number of rows.
        device: of the indices.
    """

    def __init__(
        self,
        rows: Callable[[Tensor], Any],
        samples: int,
        batch: int,
        seed: int,
        *,
        accumulate: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(range(samples), batch, seed, accumulate=accumulate)
        self.rows, self.device = rows, device

    def starting_at(self, position: int) -> Iterator[Any]:
        """Yield batches without end, starting at micro-batch `position`."""
        order_N, ordered = torch.empty(0), -1
        while True:
            epoch, place = divmod(position, len(self))
            if epoch != ordered:
                order_N, ordered = self.order(epoch).to(self.device), epoch
            start = (place * self.world + self.rank) * self.batch
            yield self.rows(order_N[start : start + self.batch])
            position += 1
