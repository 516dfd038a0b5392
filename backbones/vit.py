"""The plain ViT that masked-image-modelling methods pretrain.

`Trunk` is what every method shares: patch embedding, class token, fixed sin-cos positions and timm's pre-norm
blocks. It can be shown some of the patches only, and then embeds no others. `VisionTransformer` is the encoder as
evaluations see it: images to `Features`.

Parameters are named as in MAE and CrossMAE: cls_token, pos_embed, patch_embed.proj.*, blocks.N.*, and norm.* where
the method has a final norm.

Shapes: B image, N patch (h * w, row-major), V patch shown, T token (class token and patches), D width, p patch side.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from backbones.config import ViT
from backbones.contract import Features
from backbones.positions import resize_positions, sincos_2d

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def patch_view(images: Tensor, patch: int) -> Tensor:
    """Images (B, 3, H, W) as patches (B, h, w, 3, p, p), without copying.

    Raises:
        ValueError: if a side of the images is not a multiple of `patch`.
    """
    if images.shape[2] % patch or images.shape[3] % patch:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]} cannot be cut into patches of {patch}")
    return images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5)


def pick_patches(patches: Tensor, index_BV: Tensor | None) -> Tensor:
    """Of patches (B, h, w, ...) those at row-major indices (B, V), or all: (B, V, ...)."""
    if index_BV is None:
        return patches.flatten(1, 2)
    columns = patches.shape[2]
    image = torch.arange(len(patches), device=patches.device)[:, None]
    return patches[image, index_BV // columns, index_BV % columns]


class PatchEmbed(nn.Module):
    """A linear map of each patch, kept as the convolution that checkpoints hold."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, patches_BV3pp: Tensor) -> Tensor:
        """Tokens (B, V, D)."""
        return F.linear(patches_BV3pp.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class Trunk(nn.Module):
    """Patch embedding, class token, positions and blocks; subclasses add what they read out and initialise."""

    def __init__(self, shape: ViT) -> None:
        super().__init__()
        self.shape = shape
        self.patch, self.width = shape.patch, shape.width
        self.patch_embed = PatchEmbed(shape.patch, shape.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        table = sincos_2d(shape.width, (shape.grid, shape.grid))
        self.pos_embed = nn.Parameter(table, requires_grad=False)  # a Parameter, so that files hold it as MAE's do
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, qkv_bias=True, norm_layer=LayerNorm)  # type: ignore[arg-type]
            for _ in range(shape.depth)
        )

    def initialise(self, *tokens: nn.Parameter) -> None:
        """MAE's initialisation, in its order, so that the same seed gives the same weights.

        The patch embedding's bias keeps the convolution's default; `tokens` are drawn after the class token.
        """
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        for token in (self.cls_token, *tokens):
            nn.init.normal_(token, std=0.02)
        self.apply(_initialise)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + V, D) of the patches at indices `keep` (B, V), in that order, or of all; class token first."""
        patches = patch_view(images, self.patch)
        positions = resize_positions(self.pos_embed, (patches.shape[1], patches.shape[2]))[0, 1:]
        tokens = self.patch_embed(pick_patches(patches, keep)) + (positions if keep is None else positions[keep])
        return torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)

    def forward_tokens(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """What the blocks see and make: the tokens (B, 1 + V, D) before the first block and after each, not normalised.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of the patch side.
            keep: row-major indices (B, V) of the patches to embed; all when None.
        """
        maps = [self.embed(images, keep)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


class VisionTransformer(Trunk):
    """An encoder to evaluate: images (B, 3, H, W), ImageNet-normalised, to `Features`.

    Tokens pass the final norm, `norm.*`, where the method trains one (MAE); else (CrossMAE) they are the last block's
    output, and `norm` is the identity. An evaluation that wants another norm puts it in its place.

    Args:
        shape: sizes of the encoder.
        final_norm: the method trains a final LayerNorm.
        pool: "avg", the mean of the patch tokens, or "cls", the class token.
    """

    def __init__(self, shape: ViT, final_norm: bool = False, pool: Literal["avg", "cls"] = "avg") -> None:
        super().__init__(shape)
        self.pool = pool
        self.norm = LayerNorm(shape.width) if final_norm else nn.Identity()
        self.initialise()

    def forward(self, images: Tensor) -> Features:
        """Pooled feature (B, D) and patch features (B, h, w, D)."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        patches = tokens[:, 1:]
        pooled = patches.mean(dim=1) if self.pool == "avg" else tokens[:, 0]
        return Features(pooled, patches.unflatten(1, (images.shape[2] // self.patch, -1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
