"""Frozen features: the encoder of a linear probe or k-NN, which of its features is taken, and a split's worth of them.

Which feature is evaluated decides the number. `describe` says it in words, for `result.json`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.checkpoint import EncoderInfo, build_encoder
from backbones.checkpoints.geometry import resize_table
from backbones.checkpoints.info import differences
from backbones.config import ViT
from backbones.vit import VisionTransformer
from cls.config import Classification, Knn, Linear, Pool
from cls.data import CentreCrops
from engine.bar import track
from engine.data import evaluation_loader
from engine.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, normalise
from engine.process import autocast_dtype

# B image of a batch, N image of a split, D width, S side of an image


@dataclass(frozen=True)
class FrozenEncoder:
    """Images to features; nothing in it is ever trained."""

    model: VisionTransformer
    info: EncoderInfo | None  # None: random weights
    standardise: bool  # the pooled feature, with a LayerNorm that has no weights
    device: torch.device
    dtype: torch.dtype | None
    at_once: int  # images encoded at a time

    @property
    def family(self) -> str | None:
        """The family of its checkpoint."""
        return None if self.info is None else self.info.family

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.model.width

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D), float32, of uint8 images (B, 3, S, S); on the encoder's device."""
        return torch.cat([self._encode(part.to(self.device)) for part in images.split(self.at_once)])

    def _encode(self, images: Tensor) -> Tensor:
        mean, std = statistics(self.info)
        with autocast(self.device, self.dtype):
            pooled_BD = self.model(normalise(images, mean, std)).pooled
        pooled_BD = pooled_BD.float()
        return F.layer_norm(pooled_BD, pooled_BD.shape[1:], eps=1e-6) if self.standardise else pooled_BD


def frozen_encoder(config: Linear | Knn, device: torch.device) -> FrozenEncoder:
    """The encoder that `config` evaluates.

    Raises:
        FileNotFoundError: if its checkpoint does not exist.
        ValueError: if the checkpoint is not one, or its patches do not fit the images.
    """
    model, info = encoder_of(config, config.pool)
    _bring_positions(model, config.image)
    if config.norm == "pooled":
        model.norm = nn.Identity()
    model.requires_grad_(False).eval().to(device)
    dtype = autocast_dtype(config.compute, device)
    return FrozenEncoder(model, info, config.norm == "pooled", device, dtype, config.encode_batch)


def encoder_of(config: Classification, pool: Pool = "avg") -> tuple[VisionTransformer, EncoderInfo | None]:
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
        model.pos_embed = nn.Parameter(table, requires_grad=False)


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


def features_of(
    encoder: FrozenEncoder, folder: ImageFolder, side: int, eval_crop: float | None, workers: int
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of a split's centre crops, in its order, on the encoder's device."""
    loader = evaluation_loader(CentreCrops(folder, side, eval_crop), encoder.at_once, workers)
    features_ND = torch.empty(len(folder), encoder.width, device=encoder.device)
    done = 0
    for images, _ in track(loader, f"encoding batches of {folder.split} images", len(loader)):
        features_ND[done : done + len(images)] = encoder(images)
        done += len(images)
    return features_ND, folder.labels.to(encoder.device)


def describe(config: Linear | Knn, info: EncoderInfo | None) -> str:
    """The evaluated feature in words."""
    what = "mean of the patch tokens" if config.pool == "avg" else "class token"
    if config.norm == "pooled":
        return f"{what}, no final norm, then standardised"
    learned = info is not None and info.final_norm
    norm = "the checkpoint's final norm" if learned else "standardising (the encoder has no final norm of its own)"
    return f"{what} after {norm}"


def encoder_facts(config: Classification, model: VisionTransformer, info: EncoderInfo | None) -> dict[str, Any]:
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
