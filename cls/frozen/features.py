"""Frozen features: the encoder of a linear probe or k-NN, which of its features is taken, and a split's worth of them.

Which feature is evaluated decides the number. A `Source` names one: what is pooled, after which block, and how it is
normalised. `describe` says it in words, for `result.json`. Features that are kept on disk are in
cls/frozen/feature_store.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder
from mimbench.backbones.checkpoints.geometry import resize_table
from mimbench.backbones.checkpoints.info import differences
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import Evaluation, FastLinear, FewShot, FrozenPool, Knn, Linear, Norm, Pool
from mimbench.cls.data.crops import CentreCrops
from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, normalise
from mimbench.engine.run.bar import track
from mimbench.engine.run.process import autocast_dtype

# B image of a batch, N image of a split, T token, D width, S side of an image

POOLED = {
    "avg": "mean of the patch tokens",
    "cls": "class token",
    "both": "class token and mean of the patch tokens, side by side,",
}


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
class FrozenEncoder:
    """Images to features; nothing in it is ever trained."""

    model: VisionTransformer
    info: EncoderInfo | None  # None: random weights
    source: Source  # the feature that calling it gives
    device: torch.device
    dtype: torch.dtype | None
    eval_batch: int  # images encoded at a time

    @property
    def family(self) -> str | None:
        """The family of its checkpoint."""
        return None if self.info is None else self.info.family

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.model.width * len(self.source.parts)

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D), float32, of uint8 images (B, 3, S, S); on the encoder's device."""
        [features_BD] = self.read(images, [self.source])
        return features_BD

    @torch.no_grad()
    def read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        """Features (B, D) of each of `sources`, from one pass through the encoder; float32, on its device."""
        parts = [self._read(part, sources) for part in images.split(self.eval_batch)]
        return [torch.cat(of_source) for of_source in zip(*parts, strict=True)]

    def _read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        mean, std = statistics(self.info)
        found: dict[Source, Tensor] = {}
        with autocast(self.device, self.dtype):
            tokens_of = self.model.after_each_block(normalise(images.to(self.device, non_blocking=True), mean, std))
            last = max(source.block for source in sources)
            for block, tokens_BTD in zip(range(1, last + 1), tokens_of, strict=False):
                for source in sources:
                    if source.block == block:
                        found[source] = torch.cat([self._pooled(tokens_BTD, part) for part in source.parts], dim=1)
        return [found[source] for source in sources]

    def _pooled(self, tokens_BTD: Tensor, source: Source) -> Tensor:
        """One pool of the tokens after a block (B, D), float32."""
        start = self.model.traits.prefix
        tokens = tokens_BTD[:, start:] if source.pool == "avg" else tokens_BTD[:, :1]
        if source.norm == "pooled":
            return _standardised(tokens.mean(1).float())
        trained = self.info is not None and self.info.final_norm
        return (self.model.norm(tokens) if trained else _standardised(tokens)).mean(1).float()


def _standardised(features: Tensor) -> Tensor:
    """A LayerNorm that has no weights."""
    return F.layer_norm(features, features.shape[-1:], eps=1e-6)


def frozen_encoder(config: Linear | Knn | FastLinear | FewShot, device: torch.device) -> FrozenEncoder:
    """The encoder that `config` evaluates.

    Raises:
        FileNotFoundError: if its checkpoint does not exist.
        ValueError: if the checkpoint is not one, its patches do not fit the images, or it lacks the class token or as
            many blocks as are asked for.
    """
    model, info = encoder_of(config, "avg" if set(_pools(config)) == {"avg"} else "cls")
    _bring_positions(model, config.image)
    model.requires_grad_(False).eval().to(device)
    dtype = autocast_dtype(config.compute, device)
    source = Source(_pools(config)[0], model.shape.depth, config.norm)
    return FrozenEncoder(model, info, source, device, dtype, config.eval_batch)


def _pools(config: Linear | Knn | FastLinear | FewShot) -> tuple[FrozenPool, ...]:
    """Every pool that is evaluated; the one that is reported comes first."""
    if isinstance(config, FastLinear):
        return config.pools
    return (config.pool, *config.more_pools) if isinstance(config, Knn) else (config.pool,)


def sources(config: Knn | FastLinear | FewShot, encoder: FrozenEncoder) -> list[Source]:
    """The features that `config` evaluates; the one that is reported, where one is, comes first.

    Raises:
        ValueError: if the encoder has fewer blocks than are asked for.
    """
    layers = 1 if isinstance(config, FewShot) else config.layers
    return sources_of(tuple(dict.fromkeys(_pools(config))), layers, config.norm, encoder.model.shape.depth)


def encoder_of(config: Evaluation, pool: Pool = "avg") -> tuple[VisionTransformer, EncoderInfo | None]:
    """The encoder of a run's checkpoint, or a random one; its patches fit the images.

    Raises:
        FileNotFoundError, ValueError: as `frozen_encoder`.
    """
    how = None if config.positions == "auto" else config.positions
    partial = config.allow_partial
    model, info = build_encoder(config.checkpoint, config.encoder, pool, allow_partial=partial, interpolation=how)
    require_fit(model.shape, config.image)
    model.require_grid(config.image // model.patch, config.image // model.patch)
    return model, info


def _bring_positions(model: VisionTransformer, image: int) -> None:
    """Resize the position table once, to the grid of all images to come."""
    if model.traits.positions == "absolute":
        grid = image // model.patch
        table = resize_table(model.pos_embed.data, (grid, grid), model.interpolation)
        model.pos_embed = torch.nn.Parameter(table, requires_grad=False)


def require_fit(vit: ViT, image: int) -> None:
    """Images of side `image` can be cut into the encoder's patches.

    Raises:
        ValueError: if they cannot.
    """
    if image % vit.patch:
        below = max(image - image % vit.patch, vit.patch)
        raise ValueError(f"image={image} cannot be cut into the encoder's patches of {vit.patch}; try image={below}")


def statistics(info: EncoderInfo | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that an encoder's images are normalised by."""
    return (IMAGENET_MEAN, IMAGENET_STD) if info is None else (info.mean, info.std)


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


def describe(config: Linear | Knn | FewShot, info: EncoderInfo | None) -> str:
    """The evaluated feature in words."""
    return _in_words(config.pool, config.norm, info)


def describe_source(source: Source, encoder: FrozenEncoder) -> str:
    """A feature in words."""
    depth = encoder.model.shape.depth
    where = "" if source.block == depth else f" of block {source.block} of {depth}"
    return _in_words(source.pool, source.norm, encoder.info, where)


def _in_words(pool: FrozenPool, norm: Norm, info: EncoderInfo | None, where: str = "") -> str:
    what = POOLED[pool] + where
    if norm == "pooled":
        return f"{what}, no final norm, then standardised" if pool != "both" else f"{what} no final norm, standardised"
    learned = info is not None and info.final_norm
    after = "the checkpoint's final norm" if learned else "standardising (the encoder has no final norm of its own)"
    return f"{what} after {after}"


def encoder_facts(config: Evaluation, model: VisionTransformer, info: EncoderInfo | None) -> dict[str, Any]:
    """Which encoder was evaluated, and what was done to it: `partial` names the keys that `allow_partial` let pass."""
    vit = model.shape
    resized = model.traits.positions == "absolute" and config.image // vit.patch != vit.grid
    facts = {
        "encoder": asdict(vit),
        "weights": "random" if info is None else f"{info.family} checkpoint",
        "pretraining_image": vit.image,
        "final_norm": info is not None and info.final_norm,
        "positions": model.interpolation if resized else "as pretrained",
    }
    if info is None:
        return facts
    return {**facts, "traits": differences(info.traits), "partial": list(info.partial), "copy": info.copy}
