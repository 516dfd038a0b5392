"""Build the transformer blocks of an encoder from its traits; all blocks are timm's classes.

    plain, LayerScale, SwiGLU, ...   timm.models.vision_transformer.Block, with the MLP below
    positions="relative"             timm.models.beit.Block: a table of biases in each block (BEiT, SimMIM)
    positions="rope", or rope=...    timm.models.eva.EvaBlock: queries and keys are rotated by position (DINOv3, EVA-02)

Parameters have timm's names, so timm's files load here by name and ours load in timm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import QuickGELU, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models import beit, eva, vision_transformer
from torch import Tensor, nn

from mimbench.backbones.config import Traits, ViT

ACTIVATIONS: dict[str, Any] = {
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}
LAYER_SCALE = 1.0  # initial value in a new encoder; a checkpoint replaces it


class Mlp(timm.layers.Mlp):
    """timm's MLP that keeps only the input of the GELU for the backward pass, not its output.

    The output is recomputed, to the same bits. This saves a fifth of the activation memory of training a ViT and costs
    a hundredth of its time (`benchmarks/crossmae_parts.py`, B24).
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to tokens of the same shape."""
        exact = isinstance(self.act, nn.GELU) and self.act.approximate == "none" and self.fc2.bias is not None
        exact = exact and isinstance(self.norm, nn.Identity)
        if not (exact and self.drop1.p == self.drop2.p == 0 and torch.is_grad_enabled()):
            plain: Tensor = super().forward(tokens)
            return plain
        hidden: Tensor = self.fc1(tokens)
        made: Tensor = _GeluLinear.apply(hidden, *(p.to(hidden.dtype) for p in self.fc2.parameters()))  # as autocast
        return made


class _GeluLinear(torch.autograd.Function):
    """A linear layer on the GELU of its input (..., H); only the input is kept for the backward pass."""

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


def norm_layer(traits: Traits) -> Callable[[int], nn.Module]:
    """Return a function that builds the encoder's kind of norm for a given width."""
    return partial(RmsNorm if traits.norm == "rms" else nn.LayerNorm, eps=traits.norm_eps)


def build_block(shape: ViT, traits: Traits, drop_path: float = 0.0) -> nn.Module:
    """Build one block: tokens (B, T, D) to the same shape; with rotary positions it also takes `rope`."""
    options: dict[str, Any] = {
        "qkv_bias": traits.qkv_bias,
        "init_values": LAYER_SCALE if traits.layer_scale else None,
        "drop_path": drop_path,
        "norm_layer": norm_layer(traits),
    }
    block: nn.Module
    if traits.positions == "relative":
        block = beit.Block(shape.width, shape.heads, window_size=(shape.grid, shape.grid), **options)
    elif traits.rotary:
        kind = "eva" if traits.separate_bias else "rope"  # timm's attention without a bias of keys, and with one
        options |= {"attn_type": kind, "scale_attn_inner": traits.attention_norm, "rotate_half": traits.rope is None}
        block = eva.EvaBlock(shape.width, shape.heads, num_prefix_tokens=traits.prefix, **options)
    else:
        options |= {"scale_attn_norm": traits.attention_norm}
        block = vision_transformer.Block(shape.width, shape.heads, mlp_layer=Mlp, **options)
    if not traits.proj_bias:
        block.attn.proj = nn.Linear(shape.width, shape.width, bias=False)
    if _own_mlp(traits):
        block.mlp = build_mlp(shape.width, traits)
    return block


def _own_mlp(traits: Traits) -> bool:
    """Whether the encoder's MLP differs from the one in timm's blocks."""
    plain = Traits()
    names = ("activation", "mlp", "hidden", "mlp_bias", "mlp_norm")
    return any(getattr(traits, name) != getattr(plain, name) for name in names)


def build_mlp(width: int, traits: Traits) -> nn.Module:
    """Build the MLP of a block, with timm's parameter names: tokens (..., D) to the same shape."""
    hidden = traits.hidden or 4 * width
    options: dict[str, Any] = {"bias": traits.mlp_bias, "norm_layer": norm_layer(traits) if traits.mlp_norm else None}
    if traits.mlp == "swiglu":
        return SwiGLUPacked(width, 2 * hidden, **options)
    if traits.mlp == "swiglu_split":
        return SwiGLU(width, hidden, **options)
    return Mlp(width, hidden, act_layer=ACTIVATIONS[traits.activation], **options)
