"""The frozen encoder of a protocol: from a checkpoint, random, or returned by a user's function."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.user_encoder import FAMILY, load_user_encoder
from mimbench.engine.run.process import autocast_dtype
from mimbench.seg.config import Backbone, LinearSegmentationConfig, PatchConfig, Pixels
from mimbench.seg.model.build import AS_IT_IS, build_backbone, image_statistics
from mimbench.seg.model.linear import FrozenEncoder, UserBackbone
from mimbench.seg.model.segmenter import RGB


@dataclass(frozen=True)
class Frozen:
    """An encoder, the normalisation of its images, and its description in the result."""

    encoder: FrozenEncoder
    mean: RGB
    std: RGB
    facts: dict[str, Any]
    family: str | None  # the checkpoint's family


class Blocks:
    """The blocks whose outputs are features: the last ones, or the named ones."""

    def __init__(self, layers: int, named: tuple[int, ...] | None = None) -> None:
        self.layers, self.named = layers, named

    def of(self, depth: int) -> tuple[int, ...]:
        """Return the blocks in an encoder of `depth` blocks.

        Raises:
            ValueError: if the encoder has fewer blocks.
        """
        if self.named is not None:
            return Backbone(blocks=self.named).outputs(depth)
        if self.layers > depth:
            raise ValueError(f"layers={self.layers} exceeds the encoder's {depth} blocks")
        return tuple(range(depth - self.layers, depth))


def frozen_encoder(
    config: LinearSegmentationConfig | PatchConfig,
    blocks: Blocks,
    pixels: Pixels,
    device: torch.device,
) -> Frozen:
    """Build the frozen encoder of `config`, with its final norm if it has one.

    Raises:
        FileNotFoundError, ValueError: as `build_backbone`; also if `config` needs more than the last block of a user's
            encoder.
    """
    precision = autocast_dtype(config.compute, device)
    if config.checkpoint is not None and user_code(config.checkpoint) is not None:
        user = load_user_encoder(config.checkpoint)
        if user.ours is None:
            if blocks.layers != 1 or blocks.named is not None:
                raise ValueError(f"{user.name} returns only the features of its last block; use layers=1 blocks=none")
            mean, std = image_statistics("imagenet", None)
            if pixels == "checkpoint":
                mean, std = cast(RGB, user.mean), cast(RGB, user.std)
            facts: dict[str, Any] = {"encoder": user.name, "weights": f"{FAMILY}, {user.type_name}", "final_norm": None}
            return Frozen(FrozenEncoder(UserBackbone(user), device, precision), mean, std, facts, FAMILY)
    backbone, info, _ = build_backbone(
        config.checkpoint,
        config.encoder,
        AS_IT_IS,
        blocks.of,
        image=config.image,
        allow_partial=config.allow_partial,
        frozen=True,
    )
    facts = {
        "encoder": asdict(info.vit if info else config.encoder),
        "weights": f"{info.family} checkpoint" if info else "random",
        "final_norm": info is not None and info.final_norm,
        "blocks": list(backbone.outputs),
    }
    encoder = FrozenEncoder(backbone, device, precision)
    return Frozen(encoder, *image_statistics(pixels, info), facts, info.family if info else None)
