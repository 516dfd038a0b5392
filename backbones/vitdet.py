"""ViTDet's encoder: a plain ViT whose blocks attend in windows, but for a few that attend to the whole image.

Parameters are named as in detectron2's `ViT` (`pos_embed`, `patch_embed.proj.*`, `blocks.N.*`, and `rel_pos_h`,
`rel_pos_w` in every `attn`), which are MAE's names for all that a pretrained encoder brings. There is no class token
and no final norm; the position table keeps the class token's row, learns, and is resized to the grid of each image.
"""

# B image, h and w grid of patches, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mimbench.backbones.blocks import Mlp
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.positions import resize_positions, square_side
from mimbench.backbones.window_attention import RelativeAttention

PLAIN = Traits()
NOT_IN_VITDET = ("cls_token", "norm.weight", "norm.bias")  # what a plain encoder has beyond ViTDet's


def vitdet_reason(traits: Traits) -> str | None:
    """Why an encoder with `traits` cannot be ViTDet's, in one line; None if it can.

    ViTDet has MAE's blocks and nothing else. Weights that have no place in it are often left out without a word
    elsewhere, and what is left is another encoder, with a poor AP.
    """
    lacking = {
        "registers": f"{traits.registers} registers",
        "positions": f"{traits.positions} positions, where it has a table of absolute ones",
        "pre_norm": "a norm before the first block",
        "layer_scale": "LayerScale",
        "activation": f"{traits.activation} as activation",
        "mlp": "SwiGLU in place of the MLP",
        "hidden": f"an MLP {traits.hidden} wide, where it has four times the encoder's width",
        "patch_bias": "no bias in the patch embedding",
        "qkv_bias": "no bias in query, key and value",
        "norm_eps": f"norms with eps {traits.norm_eps:g}, where it has {PLAIN.norm_eps:g}",
    }
    found = [what for name, what in lacking.items() if getattr(traits, name) != getattr(PLAIN, name)]
    if not found:
        return None
    return (
        f"this encoder cannot be a ViTDet backbone, which has no place for what it has: {'; '.join(found)}. "
        "Without it, it would be another encoder; k-NN, linear probe and fine-tuning take it as it is"
    )


class Block(nn.Module):
    """A pre-norm block over a grid of tokens."""

    def __init__(self, width: int, heads: int, *, window: int, grid: int, rel_pos: bool, drop_path: float) -> None:
        """`window` 0 attends globally; see `RelativeAttention`."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = RelativeAttention(width, heads, window=window, grid=grid, rel_pos=rel_pos)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens_BhwD: Tensor) -> Tensor:
        """Tokens (B, h, w, D) to the same."""
        tokens_BhwD = tokens_BhwD + self.drop_path(self.attn(self.norm1(tokens_BhwD)))
        return tokens_BhwD + self.drop_path(self.mlp(self.norm2(tokens_BhwD)))


class PatchEmbed(nn.Module):
    """A linear map of each patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, h, w, D)."""
        return self.proj(images).permute(0, 2, 3, 1)


class ViTDet(nn.Module):
    """Images (B, 3, H, W), normalised, to a map (B, D, h, w) of patches."""

    def __init__(
        self,
        vit: ViT,
        *,
        image: int,
        window: int = 14,
        global_blocks: Sequence[int] = (2, 5, 8, 11),
        rel_pos: bool = True,
        abs_pos: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        """Args:
        vit: sizes; `vit.image` is the pretraining image, which the position table is made for.
        image: side of the images to come, in pixels; relative positions of global blocks are made for it.
        window: side of a window, in patches.
        global_blocks: indices of the blocks that attend to the whole image.
        rel_pos: decomposed relative positions in every block.
        abs_pos: the position table; without it an encoder's is left out.
        drop_path: stochastic depth of the last block; rises linearly from 0.

        Raises:
            ValueError: if an index of `global_blocks` is not a block, or `image` is no multiple of the patch.
        """
        super().__init__()
        wrong = [index for index in global_blocks if not 0 <= index < vit.depth]
        if wrong:
            raise ValueError(f"global_blocks={tuple(global_blocks)}: the encoder's blocks are 0..{vit.depth - 1}")
        if image % vit.patch:
            raise ValueError(f"image={image} must be a multiple of the encoder's patch={vit.patch}")
        self.vit = vit
        self.recompute = False  # trade time for memory: the backward pass computes each block again
        self.patch_embed = PatchEmbed(vit.patch, vit.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + vit.grid**2, vit.width)) if abs_pos else None
        rates = [drop_path * index / max(vit.depth - 1, 1) for index in range(vit.depth)]
        windows = [0 if index in global_blocks else window for index in range(vit.depth)]
        grid = image // vit.patch
        self.blocks = nn.ModuleList(
            Block(vit.width, vit.heads, window=window_of, grid=grid, rel_pos=rel_pos, drop_path=rate)
            for window_of, rate in zip(windows, rates, strict=True)
        )
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """(B, D, h, w), the output of the last block."""
        tokens_BhwD = self.patch_embed(images)
        grid = (tokens_BhwD.shape[1], tokens_BhwD.shape[2])
        if self.pos_embed is not None:
            tokens_BhwD = tokens_BhwD + resize_positions(self.pos_embed, grid)[:, 1:].unflatten(1, grid)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                tokens_BhwD = checkpoint(block, tokens_BhwD, use_reentrant=False)
            else:
                tokens_BhwD = block(tokens_BhwD)
        return tokens_BhwD.permute(0, 3, 1, 2)

    def load_encoder(self, state: Mapping[str, Tensor], traits: Traits = PLAIN) -> None:
        """Take the weights of a plain encoder (`backbones.checkpoint.load_encoder`); relative positions stay zero.

        A kernel for patches of another size is resampled, as ViTDet does for ViT-H (14 to 16 pixels), and so is a
        position table for another grid: both bicubic. A table without a class token's row gets one of zeros.

        Raises:
            ValueError: if the encoder has `traits` that ViTDet has not, or its width or depth differs, naming the first
                weight that does not fit.
        """
        if (reason := vitdet_reason(traits)) is not None:
            raise ValueError(reason)
        own = self.state_dict()
        given = {key: value for key, value in state.items() if key not in NOT_IN_VITDET}
        if self.pos_embed is None:
            given.pop("pos_embed", None)
        elif not traits.class_token:
            table = given["pos_embed"]
            given["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        for key, resample in (("patch_embed.proj.weight", _resampled_kernel), ("pos_embed", _resampled_positions)):
            if key in given and given[key].shape != own[key].shape:
                given[key] = resample(given[key], own[key])
        needed = {key for key in own if ".rel_pos_" not in key}
        wrong = sorted(needed ^ set(given)) or [key for key in given if given[key].shape != own[key].shape]
        if wrong:
            shapes = [tuple(where[wrong[0]].shape) if wrong[0] in where else "none" for where in (given, own)]
            raise ValueError(
                f"the encoder does not fit this ViTDet ({self.vit}): its {wrong[0]} is {shapes[0]}, not {shapes[1]}"
            )
        self.load_state_dict(given, strict=False)


def _initialise(module: nn.Module) -> None:
    """detectron2's start: truncated normals for linear maps; convolutions and norms keep torch's own."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _resampled_kernel(kernel: Tensor, like: Tensor) -> Tensor:
    """A patch embedding's kernel (D, 3, p, p) for patches of another side."""
    return F.interpolate(kernel, size=like.shape[-2:], mode="bicubic", align_corners=False)


def _resampled_positions(table: Tensor, like: Tensor) -> Tensor:
    """A position table (1, 1 + n * n, D) for another square grid."""
    return resize_positions(table, (square_side(like), square_side(like)))
