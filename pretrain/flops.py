"""What the decoders of MAE and CrossMAE compute, counted in live models that hold no numbers.

    mimbench flops pretrain

Forward pass, one image of the pretraining size, two operations for each multiply-add. Counted are the decoder's blocks
and, in MAE, the layer that brings tokens to the decoder's width; norms, positions and the last layer are not, as in
CrossMAE's own figure. CrossMAE's mixing of feature maps is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mimbench.backbones.config import SIZES, ViT
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, MethodConfig, RandomMasking
from mimbench.pretrain.masking.strategies import Random
from mimbench.pretrain.methods.table import build_method

SMALL: dict[str, Any] = {"width": 256, "heads": 8}  # the decoder of ViT-S; the others have 512 and 16
ROWS: tuple[tuple[str, CrossMAEConfig | MAEConfig, float], ...] = (  # what to call it, the method, the share predicted
    ("MAE, 8 blocks", MAEConfig(), 0.75),
    ("CrossMAE .25, 12 blocks", CrossMAEConfig(), 0.25),
    ("CrossMAE .75, 12 blocks", CrossMAEConfig(), 0.75),
    ("CrossMAE .25, 8 blocks", CrossMAEConfig(depth=8), 0.25),
)


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass on one image."""

    size: str
    name: str
    decoder: int  # its blocks, and MAE's decoder_embed
    mixing: int  # of feature maps
    encoder: int
    total: int


def decoder_table() -> Iterator[Flops]:
    """Every size of encoder with every decoder of `ROWS`."""
    for size, shape in SIZES.items():
        for name, config, predict in ROWS:
            yield flops(size, name, replace(config, **SMALL) if size == "S" else config, shape, predict)


def flops(size: str, name: str, config: MethodConfig, shape: ViT, predict: float, mask: float = 0.75) -> Flops:
    """What one method computes for one image."""
    masking = Random(RandomMasking(mask=mask, predict=predict))
    with torch.device("meta"):
        method = build_method(config, shape)
        masked = masking(torch.zeros(1, shape.grid**2), None, (shape.grid, shape.grid), 0.0)
        images = torch.zeros(1, 3, shape.image, shape.image)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method(images, masked)
    by_module = {module: sum(parts.values()) for module, parts in counter.get_flop_counts().items()}
    root = type(method).__name__

    def of(part: str) -> int:
        return sum(count for module, count in by_module.items() if module.rpartition(".")[0] == f"{root}.{part}")

    embed, mixing = by_module.get(f"{root}.decoder_embed", 0), by_module.get(f"{root}.wfm", 0)
    encoder = by_module.get(f"{root}.patch_embed", 0) + of("blocks")
    return Flops(size, name, of("decoder_blocks") + embed, mixing, encoder, by_module["Global"])
