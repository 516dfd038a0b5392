"""Which learning rate and weight decay each parameter of a detector gets: detectron2's rules for ViTDet.

The rate falls by `layer_decay` from each block to the one before it; what comes before the blocks (position table,
patch embedding, class token, registers, first norm) is layer 0, the blocks 1 to depth, all else (pyramid, heads, the
encoder's final norm) depth + 1. No weight decay for the norms of the ViT before and in its blocks, its position table,
class token, registers and LayerScale, which would shrink to a third of itself in 100 epochs. Everything else decays:
biases, relative positions, and also the channel norms of pyramid and heads, which detectron2 does not count among the
norms. ViTDet-H decays everything.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from mimbench.det.config import MaskRCNNConfig
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.schedule import warmup_steps

BETAS = (0.9, 0.999)
WARMUP_FACTOR = 0.001  # of the peak, at the first step
MILESTONE_FACTOR = 0.1

_BLOCK = re.compile(r"backbone\.net\.blocks\.(\d+)\.")
_SPARED = re.compile(
    r"backbone\.net\.((pos_embed|cls_token|reg_token)$|(norm_pre|patch_embed\.norm)\."
    r"|blocks\.\d+\.((norm[12]|attn\.norm|mlp\.norm)\.|(ls[12]\.gamma|gamma_[12])$))"
)
_FIRST = tuple(f"backbone.net.{name}" for name in ("pos_embed", "patch_embed.", "cls_token", "reg_token", "norm_pre."))


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter: 0 to depth + 1."""
    if match := _BLOCK.match(name):
        return int(match[1]) + 1
    return 0 if name.startswith(_FIRST) else depth + 1


def groups(model: nn.Module, config: MaskRCNNConfig, depth: int) -> list[dict[str, Any]]:
    """Parameter groups by layer and weight decay, in order of first appearance (27, 51 and 34 for B, L and H)."""
    return parameter_groups(
        model.named_parameters(),
        config.weight_decay,
        no_decay=lambda name, _: not config.decay_norms and _SPARED.match(name) is not None,
        layer_of=lambda name: layer_of(name, depth),
        layers=depth + 1,
        decay=config.layer_decay,
    )


def optimizer(model: nn.Module, config: MaskRCNNConfig, depth: int) -> torch.optim.AdamW:
    """AdamW on `groups`."""
    return adamw(groups(model, config, depth), config.lr, BETAS)


def learning_rate(config: MaskRCNNConfig, step: int) -> float:
    """The rate of the heads at a step: linear warm-up, then a tenth from each milestone on."""
    return warmup_steps(step, config.lr, config.warmup, WARMUP_FACTOR, config.milestones, MILESTONE_FACTOR)
