"""The encoder of a frozen evaluation: a mimbench encoder (from a checkpoint or random) or a user's own.

    encoder = frozen_encoder(config, device)        # a `FrozenEncoder` of cls/frozen/features.py
    encoder.read(images, sources(config, encoder))

`checkpoint=my_encoder.py:build` names a function that returns an encoder meeting `backbones.contract`. Such an encoder
has two features: `avg` is the mean of the grid that it returns, `cls` the pooled feature that it returns. Its norms
and inner blocks are not accessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder
from mimbench.backbones.checkpoints.info import differences
from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.config import Interpolation, ViT
from mimbench.backbones.content import content_hash, tensors_hash
from mimbench.backbones.positions import resize_positions
from mimbench.backbones.user_encoder import FAMILY, UserEncoder, load_user_encoder
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import Evaluation, FastLinear, FewShot, FrozenPool, Knn, Linear, Norm, Pool
from mimbench.cls.frozen.features import FrozenEncoder, Source, autocast, sources_of
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, normalise
from mimbench.engine.run.process import autocast_dtype
from mimbench.engine.training.compiling import blocks_of, compile_parts

# B image of a batch, T token, D width, S side of an image

FrozenConfig = Linear | Knn | FastLinear | FewShot
POOLED = {
    "avg": "mean of the patch tokens",
    "cls": "class token",
    "both": "class token and mean of the patch tokens, side by side,",
}
USER_POOLED = {
    "avg": "mean of the grid",
    "cls": "pooled feature",
    "both": "pooled feature and mean of the grid, side by side,",
}


@dataclass(frozen=True)
class FrozenViT(FrozenEncoder):
    """A mimbench encoder."""

    model: VisionTransformer
    info: EncoderInfo | None  # None: random weights

    @property
    def family(self) -> str | None:
        """Family of the encoder's checkpoint."""
        return None if self.info is None else self.info.family

    @property
    def token_width(self) -> int:
        """Width of the encoder's tokens."""
        return self.model.width

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.model.shape.depth

    def describe(self, pool: FrozenPool, norm: Norm, where: str = "") -> str:
        """Return the description of a feature."""
        return describe(pool, norm, self.info, where)

    def facts(self, config: Evaluation) -> dict[str, Any]:
        """As `encoder_facts`."""
        return encoder_facts(config, self.model, self.info)

    def identity(self) -> dict[str, Any]:
        """Return the evaluated weights' hash, shape, traits, and the statistics that normalise the images."""
        return {
            "weights": tensors_hash(self.model.state_dict()),
            "shape": asdict(self.model.shape),
            "traits": asdict(self.model.traits),
            "statistics": statistics(self.info),
        }

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
        """Return the pooled tokens after a block (B, D), float32."""
        start = self.model.traits.prefix
        tokens = tokens_BTD[:, start:] if source.pool == "avg" else tokens_BTD[:, :1]
        if source.norm == "pooled":
            return standardised(tokens.mean(1).float())
        trained = self.info is not None and self.info.final_norm
        return (self.model.norm(tokens) if trained else standardised(tokens)).mean(1).float()


@dataclass(frozen=True)
class FrozenUserEncoder(FrozenEncoder):
    """An encoder returned by a user's function that is not a mimbench encoder."""

    user: UserEncoder

    @property
    def family(self) -> str:
        """User code, which has no family."""
        return FAMILY

    @property
    def token_width(self) -> int:
        """Its `width`."""
        return self.user.encoder.width

    @property
    def depth(self) -> int:
        """1: only the encoder's output is available."""
        return 1

    def describe(self, pool: FrozenPool, norm: Norm, where: str = "") -> str:
        """Return the description of a feature."""
        after = ", standardised" if norm == "pooled" else ""
        return f"{USER_POOLED[pool]} that {self.user.name} returns (user code){after}"

    def facts(self, config: Evaluation) -> dict[str, Any]:
        """Return the encoder's function and class, and how its images are normalised."""
        user = self.user
        about = {"code": user.name, "type": user.type_name, "width": user.encoder.width, "patch": user.encoder.patch}
        whose = "the encoder's" if user.statistics_given else "ImageNet's, for the encoder gives none"
        statistics = {"mean": list(user.mean), "std": list(user.std), "statistics": whose}
        return {"encoder": {**about, **statistics}, "weights": f"user code, {user.name}"}

    def identity(self) -> dict[str, Any]:
        """Return the source file and function, the statistics, and the weights as far as they are accessible."""
        module = self.user.module
        return {
            "code": content_hash(self.user.code.location),
            "weights": None if module is None else tensors_hash(module.state_dict()),
            "statistics": [self.user.mean, self.user.std],
        }

    def _read(self, images: Tensor, sources: Sequence[Source]) -> list[Tensor]:
        with autocast(self.device, self.dtype):
            moved = images.to(self.device, non_blocking=True)
            features = self.user.features(normalise(moved, self.user.mean, self.user.std))
        pools = {"avg": features.grid.float().mean((1, 2)), "cls": features.pooled.float()}
        found = []
        for source in sources:
            parts = [pools[part.pool] for part in source.parts]
            found.append(torch.cat([standardised(part) if source.norm == "pooled" else part for part in parts], dim=1))
        return found


def standardised(features: Tensor) -> Tensor:
    """Apply a LayerNorm without weights."""
    return F.layer_norm(features, features.shape[-1:], eps=1e-6)


def frozen_encoder(config: FrozenConfig, device: torch.device) -> FrozenEncoder:
    """Return the encoder that `config` evaluates: from a checkpoint, random without one, or a user's own.

    Raises:
        FileNotFoundError: if its checkpoint does not exist.
        ValueError: if the file is not a checkpoint, the patches do not fit the images, the class token is missing, the
            config asks for more blocks than exist, or a user's encoder does not meet the contract.
    """
    if config.checkpoint is None or user_code(config.checkpoint) is None:
        return frozen_vit(config, device)
    user = load_user_encoder(config.checkpoint)
    if user.ours is None:
        return _frozen_user_encoder(config, user, device)
    model, info = user.build(_pool(config), _interpolation(config))
    _require_grid(model, config.image)
    return _frozen_vit(config, device, model, info)


def _frozen_user_encoder(config: FrozenConfig, user: UserEncoder, device: torch.device) -> FrozenUserEncoder:
    user.to(device)
    dtype = autocast_dtype(config.compute, device)
    with autocast(device, dtype):
        user.try_out(config.image, device)
    return FrozenUserEncoder(Source(_pools(config)[0], 1, config.norm), device, dtype, config.eval_batch, user)


def frozen_vit(config: FrozenConfig, device: torch.device) -> FrozenViT:
    """Return the mimbench encoder that `config` evaluates.

    Raises:
        FileNotFoundError: if its checkpoint does not exist.
        ValueError: if the file is not a checkpoint, the patches do not fit the images, the class token is missing, or
            the config asks for more blocks than exist.
    """
    return _frozen_vit(config, device, *encoder_of(config, _pool(config)))


def _frozen_vit(
    config: FrozenConfig, device: torch.device, model: VisionTransformer, info: EncoderInfo | None
) -> FrozenViT:
    _bring_positions(model, config.image)
    model.requires_grad_(False).eval().to(device)
    if config.compile:
        compile_parts(blocks_of(model))
    source = Source(_pools(config)[0], model.shape.depth, config.norm)
    return FrozenViT(source, device, autocast_dtype(config.compute, device), config.eval_batch, model, info)


def _pool(config: FrozenConfig) -> Pool:
    """Return the pool that the encoder must support: "cls" if any evaluated pool reads the class token."""
    return "avg" if set(_pools(config)) == {"avg"} else "cls"


def _interpolation(config: Evaluation) -> Interpolation | None:
    """Return how the position table is resized; None: as the checkpoint's family does."""
    return None if config.positions == "auto" else config.positions


def _pools(config: FrozenConfig) -> tuple[FrozenPool, ...]:
    """Return every evaluated pool; the reported one comes first."""
    if isinstance(config, FastLinear):
        return config.pools
    return (config.pool, *config.more_pools) if isinstance(config, Knn) else (config.pool,)


def sources(config: Knn | FastLinear | FewShot, encoder: FrozenEncoder) -> list[Source]:
    """Return the features that `config` evaluates; the reported one, if any, comes first.

    Raises:
        ValueError: if the encoder has fewer blocks than the config asks for.
    """
    layers = 1 if isinstance(config, FewShot) else config.layers
    if isinstance(config, FastLinear) and not isinstance(encoder, FrozenViT):
        layers = 1  # only the output of a user's encoder is available
    return sources_of(tuple(dict.fromkeys(_pools(config))), layers, config.norm, encoder.depth)


def encoder_of(config: Evaluation, pool: Pool = "avg") -> tuple[VisionTransformer, EncoderInfo | None]:
    """Return the encoder of a run's checkpoint, or a random one, checked to fit the image size.

    Raises:
        FileNotFoundError, ValueError: as `frozen_encoder`.
    """
    partial, how = config.allow_partial, _interpolation(config)
    model, info = build_encoder(config.checkpoint, config.encoder, pool, allow_partial=partial, interpolation=how)
    _require_grid(model, config.image)
    return model, info


def _require_grid(model: VisionTransformer, image: int) -> None:
    require_fit(model.shape, image)
    model.require_grid(image // model.patch, image // model.patch)


def _bring_positions(model: VisionTransformer, image: int) -> None:
    """Resize the position table once, to the grid of the evaluation's images."""
    if model.traits.positions == "absolute":
        grid = image // model.patch
        table = resize_positions(model.pos_embed.data, (grid, grid), model.interpolation)
        model.pos_embed = torch.nn.Parameter(table, requires_grad=False)


def require_fit(vit: ViT, image: int) -> None:
    """Check that images of side `image` can be divided into the encoder's patches.

    Raises:
        ValueError: if they cannot.
    """
    if image % vit.patch:
        below = max(image - image % vit.patch, vit.patch)
        raise ValueError(f"image={image} is not a multiple of the encoder's patch size {vit.patch}; use image={below}")


def statistics(info: EncoderInfo | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that normalise an encoder's images."""
    return (IMAGENET_MEAN, IMAGENET_STD) if info is None else (info.mean, info.std)


def describe_source(source: Source, encoder: FrozenEncoder) -> str:
    """Return the description of a feature."""
    where = "" if source.block == encoder.depth else f" of block {source.block} of {encoder.depth}"
    return encoder.describe(source.pool, source.norm, where)


def describe(pool: FrozenPool, norm: Norm, info: EncoderInfo | None, where: str = "") -> str:
    """Return the description of a mimbench encoder's feature; `where` names the block."""
    what = POOLED[pool] + where
    if norm == "pooled":
        return f"{what}, no final norm, then standardised" if pool != "both" else f"{what} no final norm, standardised"
    learned = info is not None and info.final_norm
    after = "the checkpoint's final norm" if learned else "standardising (the encoder has no final norm of its own)"
    return f"{what} after {after}"


def encoder_facts(config: Evaluation, model: VisionTransformer, info: EncoderInfo | None) -> dict[str, Any]:
    """Return the facts of the evaluated encoder; `partial` lists the keys accepted because of `allow_partial`."""
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
