"""What timm builds under a name: the traits that the keys of its files do not show, read off the model on no memory.

found = read_architecture("vit_base_patch16_rope_ape_224")
found.heads, found.activation, found.rope       12, "gelu", Rope(None, theta=100, order="xy")
found.reason                                    None, or why no encoder of ours is this model

timm is imported only when a file names one of its models: that takes longer than inspecting any file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from mimbench.backbones.config import Activation, Rope

COMPARED = ("blocks.0.", "patch_embed.")
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Architecture:
    """A model of timm's as its attributes describe it."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]  # of the first block and the patch embedding
    depth: int | None  # None where the name alone tells it
    heads: int
    activation: Activation | None  # None of gated MLPs, whose gate is always SiLU
    norm_eps: float
    rope: Rope | None
    rotary: bool  # queries and keys are rotated, by `rope` or as in DINOv3
    grid: tuple[int, int] | None
    mean: Triple
    std: Triple
    reason: str | None  # why no encoder of ours is this model

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        """Whether `shapes`, by a file's names, are of this model's blocks."""
        theirs = {name: tuple(shape) for name, shape in shapes.items() if name.startswith(COMPARED)}
        depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        return theirs == self.shapes and self.depth in (None, depth)


def is_architecture(name: str) -> bool:
    """Whether timm has a model of this name."""
    import timm

    return bool(timm.is_model(name.partition(".")[0]))


@lru_cache(maxsize=64)
def read_architecture(name: str, arguments: str = "{}") -> Architecture:
    """What timm builds under `name` with `arguments`, a JSON object.

    Raises:
        ValueError: if timm has no such model, or it is no Vision Transformer.
    """
    import timm

    name = name.partition(".")[0]
    try:
        given = json.loads(arguments)
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **{**given, "depth": 1})  # all blocks are alike
        return _read(name, model, given.get("depth"))
    except (RuntimeError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"timm's {name} cannot be read: {' '.join(str(error).split())[:120]}") from None


def _read(name: str, model: Any, depth: int | None) -> Architecture:
    from timm.models import beit, eva, vision_transformer, vision_transformer_sam

    block = model.blocks[0]
    rope, reason = _rope(model)
    known = (vision_transformer.Block, eva.EvaBlock, beit.Block, vision_transformer_sam.Block)
    if not issubclass(type(block), known):  # isinstance would narrow its type to that of modules without attributes
        return _unlike(name, model, depth, f"its blocks are timm's {type(block).__name__}")
    if not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity):
        reason = "its queries and keys are normed"
    gated = hasattr(block.mlp, "fc1_g") or not hasattr(block.mlp, "act") or "Glu" in type(block.mlp).__name__
    activation = None if gated else _activation(block.mlp.act)
    if not gated and activation is None:
        reason = f"its activation is {type(block.mlp.act).__name__}"
    return Architecture(
        name=name,
        shapes=_shapes(model),
        depth=depth,
        heads=block.attn.num_heads,
        activation=activation,
        norm_eps=float(block.norm1.eps),
        rope=rope,
        rotary=getattr(model, "rope", None) is not None,
        grid=_grid(model),
        mean=tuple(model.pretrained_cfg["mean"]),
        std=tuple(model.pretrained_cfg["std"]),
        reason=reason,
    )


def _unlike(name: str, model: Any, depth: int | None, reason: str) -> Architecture:
    """A model whose blocks are none of ours: its names and shapes, and why."""
    mean, std = tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])
    return Architecture(name, _shapes(model), depth, 1, None, 1e-6, None, False, None, mean, std, reason)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if key.startswith(COMPARED)}


def _activation(module: nn.Module) -> Activation | None:
    from timm.layers import QuickGELU
    from timm.layers.activations import GELU, GELUTanh

    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh"):
        return "gelu_tanh"
    return "gelu" if isinstance(module, nn.GELU | GELU) else None


def _rope(model: Any) -> tuple[Rope | None, str | None]:
    """The rotary positions as ours, and why they cannot be; two times None where there are none, or DINOv3's."""
    from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3

    rope = getattr(model, "rope", None)
    if rope is None or isinstance(rope, RotaryEmbeddingDinoV3):
        return None, None
    plain = type(rope) is RotaryEmbeddingCat and not rope.in_pixels and not rope.linear_bands and not rope.rotate_half
    if not plain or getattr(rope, "grid_type", "index") != "index":
        return None, f"its rotary positions are timm's {type(rope).__name__}, which mimbench does not support"
    span = rope.ref_feat_shape
    if span is not None and span[0] != span[1]:
        return None, "its rotary positions are of no square grid"
    order: Any = "xy" if rope.grid_indexing == "xy" else "yx"
    return Rope(None if span is None else int(span[0]), float(rope.temperature), order, float(rope.grid_offset)), None


def _grid(model: Any) -> tuple[int, int] | None:
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(grid[0]), int(grid[1])) if isinstance(grid, tuple) and len(grid) == 2 else None
