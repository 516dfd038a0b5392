"""Learning rate and weight decay of each parameter of a detector: detectron2's rules for ViTDet.

The rate decreases by `layer_decay` from each block to the block before it. Parameters before the blocks (position
table, patch embedding, class token, registers, first norm) are layer 0, the blocks 1 to depth, all others (pyramid,
heads, the encoder's final norm) depth + 1. Without weight decay: the norms of the ViT before and in its blocks, its
position table, class token, registers, and LayerScale (decay would shrink it to a third in 100 epochs). With weight
decay: all others, including biases, relative positions, and the channel norms of pyramid and heads, which detectron2
does not recognise as norms. ViTDet-H applies weight decay to everything.
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
    """Return the layer of a parameter: 0 to depth + 1."""
    if match := _BLOCK.match(name):
        return int(match[1]) + 1
    return 0 if name.startswith(_FIRST) else depth + 1


def groups(model: nn.Module, config: MaskRCNNConfig, depth: int) -> list[dict[str, Any]]:
    """Return the parameter groups by layer and weight decay, in order of first appearance (B 27, L 51, H 34)."""
    return parameter_groups(
        model.named_parameters(),
        config.weight_decay,
        no_decay=lambda name, _: not config.decay_norms and _SPARED.match(name) is not None,
        layer_of=lambda name: layer_of(name, depth),
        layers=depth + 1,
        decay=config.layer_decay,
    )


def optimizer(model: nn.Module, config: MaskRCNNConfig, depth: int) -> torch.optim.AdamW:
    """Return AdamW on `groups`."""
    return adamw(groups(model, config, depth), config.lr, BETAS)


def learning_rate(config: MaskRCNNConfig, step: int) -> float:
    """Return the heads' learning rate at a step: linear warm-up, then divided by 10 at each milestone."""
    return warmup_steps(step, config.lr, config.warmup, WARMUP_FACTOR, config.milestones, MILESTONE_FACTOR)
