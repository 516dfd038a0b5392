"""Frozen features: what is read of the encoder of a linear probe or k-NN, and a split's worth of it.

Which feature is evaluated decides the number. A `Source` names one: what is pooled, after which block, and how it is
normalised. `FrozenEncoder.describe` says it in words, for `result.json`. Encoders are in cls/frozen/encoders.py,
features that are kept on disk in cls/frozen/feature_store.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mimbench.cls.config import Evaluation, FrozenPool, Norm
from mimbench.cls.data.crops import CentreCrops
from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.images import ImageFolder
from mimbench.engine.run.bar import track

# B image of a batch, N image of a split, T token, D width, S side of an image


class Source(NamedTuple):
    """A feature: `pool` of the tokens after block `block` (1 to depth), normalised as `norm` says."""

    pool: FrozenPool
    block: int
    norm: Norm

    @property
    def name(self) -> str:
        """For files and metrics, such as `avg-12-tokens`."""
        return f"{self.pool}-{self.block}-{self.norm}"

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources it is made of, side by side."""
        return (self._replace(pool="cls"), self._replace(pool="avg")) if self.pool == "both" else (self,)


def sources_of(pools: Sequence[FrozenPool], layers: int, norm: Norm, depth: int) -> list[Source]:
    """Every pool of the last `layers` of `depth` blocks: the last block's first.

    Raises:
        ValueError: if there are fewer blocks.
    """
    if layers > depth:
        raise ValueError(f"layers={layers} of an encoder with {depth} blocks cannot be had; take layers={depth}")
    return [Source(pool, block, norm) for block in range(depth, depth - layers, -1) for pool in pools]


@dataclass(frozen=True)
class FrozenEncoder(ABC):
    """Images to features; nothing in it is ever trained. The kinds are in cls/frozen/encoders.py."""

    source: Source  # the feature that calling it gives
    device: torch.device
    dtype: torch.dtype | None
    eval_batch: int  # images encoded at a time

    @property
    @abstractmethod
    def family(self) -> str | None:
        """The family of its checkpoint."""

    @property
    @abstractmethod
    def token_width(self) -> int:
        """Length of the feature of one token."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many blocks have features to read; the last is the encoder's output."""

    @abstractmethod
    def describe(self, pool: FrozenPool, norm: Norm, where: str = "") -> str:
        """A feature in words; `where` says of which block."""

    @abstractmethod
    def facts(self, config: Evaluation) -> dict[str, Any]:
        """Which encoder was evaluated, and what was done to it."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What two encoders have in common that give the same features, as JSON."""

    @abstractmethod
    def _read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        """Features (B, D), float32, of each of `sources` for uint8 images (B, 3, S, S)."""

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.token_width * len(self.source.parts)

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D), float32, of uint8 images (B, 3, S, S); on the encoder's device."""
        [features_BD] = self.read(images, [self.source])
        return features_BD

    @torch.no_grad()
    def read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        """Features (B, D) of each of `sources`, from one pass through the encoder; float32, on its device."""
        parts = [self._read(part, sources) for part in images.split(self.eval_batch)]
        return [torch.cat(of_source) for of_source in zip(*parts, strict=True)]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`; None leaves them in float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def encoded(
    encoder: FrozenEncoder, batches: Iterable[tuple[Tensor, Any]], sources: Sequence[Source]
) -> Iterator[list[Tensor]]:
    """Features of each of `sources`, in main memory, for one batch of images after another.

    A GPU is given a batch before the features of the one before it are waited for, so that it works while the next
    images are read.
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
    """What waits until all that was asked of `device` so far is done."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def _arrived(features: list[Tensor], arrival: Callable[[], None]) -> list[Tensor]:
    arrival()
    return features


def features_of(
    encoder: FrozenEncoder, folder: ImageFolder, side: int, eval_crop: float | None, workers: int
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of a split's centre crops, in its order, on the encoder's device."""
    loader = evaluation_loader(CentreCrops(folder, side, eval_crop), encoder.eval_batch, workers)
    features_ND, done = torch.empty(len(folder), encoder.width), 0
    batches = track(loader, f"encoding batches of {folder.split} images", len(loader))
    for [features_BD] in encoded(encoder, batches, [encoder.source]):
        features_ND[done : done + len(features_BD)] = features_BD
        done += len(features_BD)
    return features_ND.to(encoder.device), folder.labels.to(encoder.device)


class RowBatches(Batches):
    """Batches of rows that are at hand, in the order in which `Batches` would load their images.

    Args:
        rows: from indices (B,) to the batch.
        samples: how many rows there are.
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
        """Batches for ever, from micro-batch `position`."""
        order_N, ordered = torch.empty(0), -1
        while True:
            epoch, place = divmod(position, len(self))
            if epoch != ordered:
                order_N, ordered = self.order(epoch).to(self.device), epoch
            start = (place * self.world + self.rank) * self.batch
            yield self.rows(order_N[start : start + self.batch])
            position += 1
