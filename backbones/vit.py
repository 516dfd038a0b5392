"""The plain ViT that masked-image-modelling methods pretrain, and its relatives.

`Trunk` is the part that all methods share: patch embedding, class token, fixed sin-cos positions and timm's pre-norm
blocks. Given only some of the patches, it embeds only these. `VisionTransformer` is the encoder for evaluations: images
to `Features`.

Parameters have the names of MAE and CrossMAE: cls_token, pos_embed, patch_embed.proj.*, blocks.N.*, and norm.* if the
method has a final norm. `Traits` describe what other encoders have in addition; those parameters have timm's names.

Shapes: B image, N patch (h * w, row-major), V patch shown, T token (class token and patches), D width, p patch side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimbench.backbones.blocks import build_block, norm_layer
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.contract import Features
from mimbench.backbones.positions import resize_positions, sincos_2d
from mimbench.backbones.rotary import rotary_positions
from mimbench.backbones.window_block import WindowedBlock

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
PLAIN = Traits()
FIRST_TOKENS = ("cls_token", "reg_token")  # tokens before the patches, if the encoder has them


def patch_view(images: Tensor, patch: int) -> Tensor:
    """Return images (B, 3, H, W) as patches (B, h, w, 3, p, p), without copying.

    Raises:
        ValueError: if a side of the images is not a multiple of `patch`.
    """
    if images.shape[2] % patch or images.shape[3] % patch:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]} cannot be cut into patches of {patch}")
    return images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5)


def pick_patches(patches: Tensor, index_BV: Tensor | None) -> Tensor:
    """Return the patches (B, h, w, ...) at row-major indices (B, V), or all of them: (B, V, ...)."""
    if index_BV is None:
        return patches.flatten(1, 2)
    columns = patches.shape[2]
    image = torch.arange(len(patches), device=patches.device)[:, None]
    return patches[image, index_BV // columns, index_BV % columns]


class PatchEmbed(nn.Module):
    """A linear map of each patch; its weights are stored as a convolution, as in checkpoints."""

    def __init__(self, patch: int, width: int, traits: Traits = PLAIN) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, bias=traits.patch_bias)
        self.norm = norm_layer(traits)(width) if traits.patch_norm else nn.Identity()

    def forward(self, patches_BV3pp: Tensor) -> Tensor:
        """Return tokens (B, V, D)."""
        tokens: Tensor = self.norm(F.linear(patches_BV3pp.flatten(2), self.proj.weight.flatten(1), self.proj.bias))
        return tokens


class Trunk(nn.Module):
    """Patch embedding, class token, positions and blocks; subclasses add outputs and initialisation.

    Args:
        shape: sizes.
        traits: its differences from MAE's ViT.
        interpolation: how the position table is resized for images of other sizes than `shape.image`.
        drop_path: stochastic depth of the last block; rises linearly from 0 over the blocks.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(
        self,
        shape: ViT,
        traits: Traits = PLAIN,
        interpolation: Interpolation = "bicubic",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.traits, self.interpolation = shape, traits, interpolation
        self.patch, self.width = shape.patch, shape.width
        self.recompute = False  # trade time for memory: see `through`
        self.patch_embed = PatchEmbed(shape.patch, shape.width, traits)
        if traits.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if traits.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, traits.registers, shape.width))
        if traits.positions == "absolute":
            table = sincos_2d(shape.width, (shape.grid, shape.grid), traits.class_token)
            self.pos_embed = nn.Parameter(table, requires_grad=False)  # a Parameter, to be saved as in MAE
        self.rope = rotary_positions(shape.width // shape.heads, traits)
        self.norm_pre = norm_layer(traits)(shape.width) if traits.pre_norm else nn.Identity()
        rates = [drop_path * index / max(shape.depth - 1, 1) for index in range(shape.depth)]
        if traits.windows is None:
            self.blocks = nn.ModuleList(build_block(shape, traits, rate) for rate in rates)
        else:
            made = (WindowedBlock(shape, traits, index, rate) for index, rate in enumerate(rates))
            self.blocks = nn.ModuleList(made)

    def initialise(self, *tokens: nn.Parameter) -> None:
        """Initialise the weights as MAE does, in the same order, so that the same seed gives the same weights.

        The patch embedding's bias keeps the convolution's default; `tokens` are drawn after the class token.
        """
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        own = [getattr(self, name) for name in FIRST_TOKENS if hasattr(self, name)]
        for token in (*own, *tokens):
            nn.init.normal_(token, std=0.02)
        self.apply(_initialise)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embed the patches at indices `keep` (B, V), in that order, or all: tokens (B, 1 + V, D), class token first.

        Registers come between class token and patches; an encoder without a class token has only the patches.

        Raises:
            ValueError: if the images cannot be cut into patches, or their grid does not fit the relative positions.
        """
        patches = patch_view(images, self.patch)
        tokens = self.patch_embed(pick_patches(patches, keep))
        first = [getattr(self, name) for name in FIRST_TOKENS if hasattr(self, name)]
        if self.traits.positions == "absolute":
            table = resize_positions(self.pos_embed, (patches.shape[1], patches.shape[2]), self.interpolation)
            head = int(self.traits.class_token)
            first[:head] = [token + table[:, :1] for token in first[:head]]
            positions = table[0, head:]
            tokens = tokens + (positions if keep is None else positions[keep])
        else:
            assert keep is None, "only absolute positions can be picked from"
            self.require_grid(patches.shape[1], patches.shape[2])
        prefix = [token.to(tokens.dtype).expand(len(tokens), -1, -1) for token in first]
        embedded: Tensor = self.norm_pre(torch.cat([*prefix, tokens], dim=1))
        return embedded

    def require_grid(self, rows: int, columns: int) -> None:
        """Refuse a grid that does not fit the positions; only tables of relative positions are tied to one grid.

        Raises:
            ValueError: in one line that names the right image size.
        """
        own = self.shape.grid
        if self.traits.positions == "relative" and (rows, columns) != (own, own):
            raise ValueError(
                f"this encoder learned its table of relative positions for {own} x {own} patches, and resizing it to "
                f"{rows} x {columns} would change the encoder; use images of {self.shape.image} pixels"
            )

    def forward_tokens(self, images: Tensor, keep: Tensor | None = None, blocks: int | None = None) -> list[Tensor]:
        """Return the tokens (B, 1 + V, D) before the first block and after each block, not normalised.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of the patch side.
            keep: row-major indices (B, V) of the patches to embed; all when None.
            blocks: number of blocks to run, from the first; all when None.
        """
        maps = [self.embed(images, keep)]
        for block in self.blocks[:blocks]:
            maps.append(self.through(block, maps[-1]))
        return maps

    def encode(self, images: Tensor) -> Tensor:
        """Return the tokens (B, T, D) after the last block, not normalised: class token, registers, patches."""
        [tokens] = deque(self.after_each_block(images), maxlen=1)
        return tokens

    def after_each_block(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the tokens (B, T, D) after each block, from the first to the last; not normalised."""
        tokens = self.embed(images)
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        more: dict[str, Any] = {} if self.rope is None else {"rope": self.rope(grid)}
        if self.traits.windows is not None:
            more["grid"] = grid
        for block in self.blocks:
            tokens = block(tokens, **more)
            yield tokens

    def through(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """Return `block(*inputs)`; with `recompute`, the backward pass runs the block again to save memory."""
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return again
        made: Tensor = block(*inputs)
        return made


class VisionTransformer(Trunk):
    """An encoder for evaluations: maps images (B, 3, H, W), normalised as in its pretraining, to `Features`.

    If the method trains a final norm (MAE), tokens pass it, `norm.*`. Otherwise (CrossMAE) they are the last block's
    output, and `norm` is the identity. An evaluation that needs another norm replaces `norm`.

    Args:
        shape: sizes of the encoder.
        final_norm: whether the method trains a final LayerNorm.
        pool: "avg", the mean of the patch tokens, or "cls", the class token.
        traits: its differences from MAE's ViT.
        interpolation: how its position table is resized to other grids.

    Raises:
        ValueError: if `pool` is "cls" and the encoder has no class token.
    """

    def __init__(
        self,
        shape: ViT,
        final_norm: bool = False,
        pool: Literal["avg", "cls"] = "avg",
        traits: Traits = PLAIN,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__(shape, traits, interpolation)
        if pool == "cls" and not traits.class_token:
            raise ValueError("pool=cls needs a class token, and this encoder has none; use pool=avg")
        self.pool = pool
        self.norm = norm_layer(traits)(shape.width) if final_norm else nn.Identity()
        self.initialise()

    def forward(self, images: Tensor) -> Features:
        """Return the pooled feature (B, D) and the patch features (B, h, w, D)."""
        tokens = self.norm(self.encode(images))
        patches = tokens[:, self.traits.prefix :]
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
