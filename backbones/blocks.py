"""The blocks of an encoder by its traits, all of them timm's own, and DINOv3's rotary positions.

    plain, LayerScale, SwiGLU, ...   timm.models.vision_transformer.Block, with the MLP below
    positions="relative"             timm.models.beit.Block: a table of biases in each block (BEiT, SimMIM)
    positions="rope"                 timm.models.eva.EvaBlock: queries and keys are rotated by position (DINOv3)

Parameters are named as timm names them, so that timm's files load by name and ours go back.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import QuickGELU, SwiGLU, SwiGLUPacked
from timm.models import beit, eva, vision_transformer
from torch import Tensor, nn

from mimbench.backbones.config import Traits, ViT

LAYER_SCALE = 1.0  # where training of a new encoder starts; a checkpoint brings its own


class Mlp(timm.layers.Mlp):
    """timm's MLP, which keeps for the backward pass what goes into the GELU and not what comes out of it.

    That is computed again, to the same bits. A fifth of the activations of a ViT's training go with it, for a
    hundredth of its time (`benchmarks/crossmae_parts.py`, B24).
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., D) to the same."""
        exact = isinstance(self.act, nn.GELU) and self.act.approximate == "none" and self.fc2.bias is not None
        if not (exact and self.drop1.p == self.drop2.p == 0 and torch.is_grad_enabled()):
            plain: Tensor = super().forward(tokens)
            return plain
        hidden: Tensor = self.fc1(tokens)
        made: Tensor = _GeluLinear.apply(hidden, *(p.to(hidden.dtype) for p in self.fc2.parameters()))  # as autocast
        return made


class _GeluLinear(torch.autograd.Function):
    """A linear layer on the GELU of its input (..., H), which alone is kept."""

    @staticmethod
    def forward(hidden: Tensor, weight_DH: Tensor, bias_D: Tensor) -> Tensor:
        return F.linear(F.gelu(hidden), weight_DH, bias_D)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight_DH = ctx.saved_tensors
        gradient_MD = gradients[0].flatten(0, -2)
        inner = torch.ops.aten.gelu_backward((gradient_MD @ weight_DH).view_as(hidden), hidden)
        return inner, gradient_MD.mT @ F.gelu(hidden).flatten(0, -2), gradient_MD.sum(0)


def build_block(shape: ViT, traits: Traits, drop_path: float = 0.0) -> nn.Module:
    """One block: tokens (B, T, D) to the same; with rotary positions also `rope`, from `RotaryPositions`."""
    options: dict[str, Any] = {
        "qkv_bias": traits.qkv_bias,
        "init_values": LAYER_SCALE if traits.layer_scale else None,
        "drop_path": drop_path,
        "norm_layer": partial(nn.LayerNorm, eps=traits.norm_eps),
    }
    block: nn.Module
    if traits.positions == "relative":
        block = beit.Block(shape.width, shape.heads, window_size=(shape.grid, shape.grid), **options)
    elif traits.positions == "rope":
        block = eva.EvaBlock(shape.width, shape.heads, num_prefix_tokens=traits.prefix, rotate_half=True, **options)
    else:
        block = vision_transformer.Block(shape.width, shape.heads, mlp_layer=Mlp, **options)
    if traits.activation != "gelu" or traits.mlp != "mlp" or traits.hidden is not None:
        block.mlp = _mlp(shape.width, traits)
    return block


def _mlp(width: int, traits: Traits) -> nn.Module:
    hidden = traits.hidden or 4 * width
    if traits.mlp == "swiglu":
        return SwiGLUPacked(width, 2 * hidden)
    if traits.mlp == "swiglu_split":
        return SwiGLU(width, hidden)
    return Mlp(width, hidden, act_layer=QuickGELU if traits.activation == "quick_gelu" else nn.GELU)


class RotaryPositions(nn.Module):
    """DINOv3's axial rotary positions for a grid of any size; no weights, but `periods` in the checkpoint.

    The patch in row i of h lies at 2 (i + 1/2) / h - 1, in -1..1, and likewise in its column; each period p turns a
    pair of channels by 2 pi of that over p. The released files hold the periods in bfloat16's precision, which is why
    they are taken from there.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.register_buffer("periods", rotary_periods(head_width))
        self.periods: Tensor

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(h * w, 2 d): for each patch the sines, then the cosines, of the d channels of a head."""
        axes = [2 * (torch.arange(side).to(self.periods) + 0.5) / side - 1 for side in grid]
        place_hw2 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        angle = (2 * math.pi * place_hw2[..., None] / self.periods).flatten(2).flatten(0, 1).tile(2)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotary_periods(head_width: int, base: float = 100.0) -> Tensor:
    """The periods (d / 4,) that DINOv3 starts from, for heads `head_width` wide: base ** (2 i / (d / 2))."""
    return base ** (torch.arange(head_width // 4) / (head_width / 4))
