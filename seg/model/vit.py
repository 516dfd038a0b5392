"""The plain ViT in a segmenter, as in BEiT's segmentation code: images to the outputs of four blocks.

In addition to the position table of MAE's ViT it has relative positions in each block and LayerScale. They start at
zero and one, so the encoder is unchanged at first. No norm follows the blocks. Parameters have mmsegmentation's names
and order, so its MAE and BEiT checkpoints load here and ours load there. Relative positions fit only one image size.

Encoders with other traits (registers, rotary positions, SwiGLU, ...) use `OtherViT`: mimbench's blocks, same outputs.

Shapes: B image, T token (class token and N patches), D width, A head, h x w grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimbench.backbones.blocks import norm_layer
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.positions import resize_positions
from mimbench.backbones.vit import Trunk
from mimbench.seg.model.relative import relative_index, rows_of

QkvBias = Literal["full", "qv", "none"]  # MAE: full; BEiT: no bias for keys; none


class Attention(nn.Module):
    """Self-attention over all tokens, with a table of relative positions if `grid` is given."""

    def __init__(self, width: int, heads: int, qkv_bias: QkvBias, grid: int | None) -> None:
        super().__init__()
        self.heads = heads
        if qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        if grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows_of(grid), heads))
        self.qkv_bias = qkv_bias
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias == "full")
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BTD: Tensor, index_TT: Tensor | None) -> Tensor:
        """Map tokens (B, T, D) to the same shape; `index_TT` is the row of the table for each pair of tokens."""
        bias: Tensor | None = self.qkv.bias
        if self.qkv_bias == "qv":
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(tokens_BTD, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias_1ATT = None
        if index_TT is not None:
            bias_1ATT = self.relative_position_bias_table[index_TT].permute(2, 0, 1)[None].to(qkv.dtype)
        mixed_BATd = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias_1ATT)
        projected: Tensor = self.proj(mixed_BATd.transpose(1, 2).flatten(2))
        return projected


class FFN(nn.Module):
    """The MLP, with mmcv's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.layers = nn.Sequential(inner, nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to the same shape."""
        made: Tensor = self.layers(tokens)
        return made


class Block(nn.Module):
    """A pre-norm block; if `scaled`, each half is multiplied by a learned factor per channel."""

    def __init__(
        self, vit: ViT, qkv_bias: QkvBias, grid: int | None, *, scaled: bool, drop_path: float, eps: float
    ) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.ones(vit.width)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.ones(vit.width)) if scaled else None
        self.ln1 = nn.LayerNorm(vit.width, eps)
        self.attn = Attention(vit.width, vit.heads, qkv_bias, grid)
        self.ln2 = nn.LayerNorm(vit.width, eps)
        self.ffn = FFN(vit.width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens_BTD: Tensor, index_TT: Tensor | None) -> Tensor:
        """Map tokens (B, T, D) to the same shape."""
        tokens_BTD = tokens_BTD + self.drop_path(_scaled(self.attn(self.ln1(tokens_BTD), index_TT), self.gamma_1))
        return tokens_BTD + self.drop_path(_scaled(self.ffn(self.ln2(tokens_BTD)), self.gamma_2))


def _scaled(tokens: Tensor, factor: Tensor | None) -> Tensor:
    return tokens if factor is None else factor * tokens


class PatchEmbed(nn.Module):
    """A linear map of each patch, with mmsegmentation's name."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to tokens (B, N, D)."""
        return self.projection(images).flatten(2).transpose(1, 2)


class SegmentationViT(nn.Module):
    """Map normalised images (B, 3, H, W) to maps (B, D, h, w): the patches after each block in `outputs`.

    Attributes:
        patch: side of a patch; H and W must be multiples of it.
        grid: patches along a side for the relative positions; None without them.
    """

    def __init__(
        self,
        vit: ViT,
        *,
        image: int,
        outputs: Sequence[int],
        abs_pos: bool = True,
        rel_pos: bool = True,
        layer_scale: bool = True,
        qkv_bias: QkvBias = "full",
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        final_norm: bool = False,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        """Build the encoder; `image` is the side of its images in pixels, which sets the size of both position tables.

        Raises:
            ValueError: if `image` is not a multiple of the patch.
        """
        super().__init__()
        require_whole_patches(image, vit.patch)
        grid = image // vit.patch
        self.patch, self.width, self.outputs, self.interpolation = vit.patch, vit.width, tuple(outputs), interpolation
        self.grid = grid if rel_pos else None
        self.recompute = False  # trade time for memory: the backward pass computes each block again
        self.cls_token = nn.Parameter(torch.zeros(1, 1, vit.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, vit.width)) if abs_pos else None
        self.patch_embed = PatchEmbed(vit.patch, vit.width)
        rates = [drop_path * index / max(vit.depth - 1, 1) for index in range(vit.depth)]
        self.layers = nn.ModuleList(
            Block(vit, qkv_bias, self.grid, scaled=layer_scale, drop_path=rate, eps=norm_eps) for rate in rates
        )
        self.norm = nn.LayerNorm(vit.width, norm_eps) if final_norm else nn.Identity()
        index = relative_index(grid) if rel_pos else None
        self.register_buffer("relative_position_index", index, persistent=False)
        self.relative_position_index: Tensor | None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, D, h, w), one for each of `outputs`.

        Raises:
            ValueError: if the size of the images does not fit the relative positions.
        """
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        if self.grid is not None and grid != (self.grid, self.grid):
            raise ValueError(other_grid_reason(self.grid, self.patch, images))
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        if self.pos_embed is not None:
            tokens = tokens + resize_positions(self.pos_embed, grid, self.interpolation)
        maps = []
        for number, block in enumerate(self.layers):
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, self.relative_position_index, use_reentrant=False)
            else:
                tokens = block(tokens, self.relative_position_index)
            # `self.outputs.count` would break the compiled graph in torch 2.6
            if taken := [output for output in self.outputs if output == number]:
                maps += [self.norm(tokens)[:, 1:].mT.unflatten(2, grid)] * len(taken)
        return maps


class OtherViT(Trunk):
    """The same for an encoder with traits that `SegmentationViT` does not support; parameters have mimbench's names."""

    def __init__(
        self,
        vit: ViT,
        traits: Traits,
        *,
        outputs: Sequence[int],
        drop_path: float = 0.0,
        final_norm: bool = False,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__(vit, traits, interpolation, drop_path)
        self.outputs = tuple(outputs)
        self.grid = vit.grid if traits.positions == "relative" else None
        self.norm = norm_layer(traits)(vit.width) if final_norm else nn.Identity()
        self.initialise()
        if traits.positions == "absolute" and interpolation != "regenerate":  # a fixed table is computed for each grid
            self.pos_embed.requires_grad_(True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, D, h, w), one for each of `outputs`."""
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        maps = []
        for number, tokens in enumerate(self.after_each_block(images)):
            # `self.outputs.count` would break the compiled graph in torch 2.6
            if taken := [output for output in self.outputs if output == number]:
                patches = self.norm(tokens)[:, self.traits.prefix :].mT.unflatten(2, grid)
                maps += [patches] * len(taken)
        return maps


def require_whole_patches(image: int, patch: int) -> None:
    """Refuse an image side that is not a multiple of the patch.

    Raises:
        ValueError: naming the nearest multiples.
    """
    if image % patch:
        below = image // patch * patch
        near = f"{below} or {below + patch}" if below else str(patch)
        raise ValueError(f"image={image} must be a multiple of the encoder's patch={patch}; use {near}")


def other_grid_reason(grid: int, patch: int, images: Tensor) -> str:
    """Return why images whose size does not fit the relative positions are refused, and what to do."""
    return (
        f"images of {images.shape[2]} x {images.shape[3]} pixels do not fit the relative positions, which need "
        f"{grid * patch} x {grid * patch}; use inference.mode=slide, or train with backbone.rel_pos=false"
    )
