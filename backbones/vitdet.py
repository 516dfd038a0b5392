"""ViTDet's encoder: a ViT whose blocks attend in windows, except for a few that attend to the whole image.

It supports every encoder that `Traits` describe and keeps the arithmetic of its blocks; the options below define what
happens in windows. Parameters have the encoder's names, plus `rel_pos_h` and `rel_pos_w` in every `attn`; for MAE's ViT
these are detectron2's names. The position table keeps the class token's row, is trained, and is resized to the grid of
each image.

The treatment of class token and registers (`prefix`):

    drop     left out, as in all published ViTDets (detectron2, EVA-02, Perception Encoder, ViT-Adapter)
    global   windowed blocks neither see nor change them; they take part in global blocks (NVlabs/RADIO, vitdet.py)
    copies   each window has its own copy; global blocks see all copies (RF-DETR)

With all blocks global and the prefix kept, the output equals the plain encoder's.
"""

# B image, h and w grid of patches, W window, P token of the prefix, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimbench.backbones import config
from mimbench.backbones.blocks import norm_layer
from mimbench.backbones.config import (
    Interpolation,
    Kernel,
    PositionTable,
    Prefix,
    RelativeResize,
    RopeWindows,
    Traits,
    ViT,
)
from mimbench.backbones.positions import resize_kernel, resize_positions, square_side
from mimbench.backbones.relative_table import resize_relative, table_side
from mimbench.backbones.rotary import rotary_positions
from mimbench.backbones.vitdet_traits import detectron2_reason, vitdet_reason
from mimbench.backbones.window_attention import Side, resize_decomposed, sides
from mimbench.backbones.window_block import Block, count_windows

__all__ = ["NOT_IN_VITDET", "Block", "PatchEmbed", "ViTDet", "detectron2_reason", "vitdet_reason"]

PLAIN = Traits()
NOT_IN_VITDET = ("cls_token", "norm.weight", "norm.bias")  # weights of MAE's encoder that detectron2's ViTDet lacks
PREFIX = ("cls_token", "reg_token")
RELATIVE = ".attn.relative_position_bias_table"
DECOMPOSED = (".attn.rel_pos_h", ".attn.rel_pos_w")


class PatchEmbed(nn.Module):
    """A linear map of each patch, then a norm if the encoder has one there."""

    def __init__(self, patch: int, width: int, traits: Traits = PLAIN) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, bias=traits.patch_bias)
        self.norm = norm_layer(traits)(width) if traits.patch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to tokens (B, h, w, D)."""
        tokens_BhwD: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return tokens_BhwD


class ViTDet(nn.Module):
    """ViTDet's encoder: maps normalised images (B, 3, H, W) to a map (B, D, h, w) of patches."""

    def __init__(
        self,
        vit: ViT,
        traits: Traits = PLAIN,
        *,
        image: int = 1024,
        window: Side | None = None,
        global_blocks: Sequence[int] | None = None,
        rel_pos: bool = True,
        abs_pos: bool = True,
        drop_path: float = 0.0,
        prefix: Prefix = "drop",
        positions: PositionTable = "resize",
        interpolation: Interpolation = "bicubic",
        rope_windows: RopeWindows = "window",
        relative_resize: RelativeResize = "cubic",
        norm: bool = False,
    ) -> None:
        """Args:
        vit: sizes; `vit.image` is the side of the pretraining images, which sets the size of the position table.
        traits: the encoder's differences from MAE's ViT.
        image: side of the images in pixels; sets the size of the relative positions of global blocks.
        window: side of a window in patches, or its rows and columns; None takes `config.vitdet_window`.
        global_blocks: indices of the blocks that attend to the whole image; None takes `config.vitdet_global_blocks`.
        rel_pos: add decomposed relative positions to every block, unless the encoder has relative or rotary positions.
            An encoder's own (SAM) are always kept.
        abs_pos: use the position table; without it, an encoder's table is left out.
        drop_path: stochastic depth of the last block; rises linearly from 0 over the blocks.
        prefix: treatment of class token and registers, see the top of the file.
        positions: "resize" resizes the position table to the image's grid; "tile" repeats it, so that each window of
            the table's size sees the whole table, as in pretraining (Perception Encoder).
        interpolation: how the table is resized; detectron2 uses bicubic.
        rope_windows: rotary positions count from each window's corner, in steps of a window of that many patches
            (EVA-02, Perception Encoder), or from the image's corner.
        relative_resize: how a table of relative positions is stretched to a larger grid, see `relative_table`.
        norm: apply the encoder's final norm to the map; its weights come with the encoder.

        Raises:
            ValueError: if an index of `global_blocks` is not a block, `image` is not a multiple of the patch, or ViTDet
                does not support `traits`.
        """
        super().__init__()
        chosen = config.vitdet_global_blocks(vit.depth, traits) if global_blocks is None else tuple(global_blocks)
        _require_fit(vit, traits, chosen, image, prefix)
        self.vit, self.traits = vit, traits
        self.prefix: Prefix = prefix if traits.class_token else "drop"
        self.window = config.vitdet_window(vit, traits, image) if window is None else window
        self.positions, self.interpolation, self.rope_windows = positions, interpolation, rope_windows
        self.relative_resize = relative_resize
        self.frozen = False  # see `freeze`
        self.recompute = False  # trade time for memory: the backward pass computes each block again
        self.patch_embed = PatchEmbed(vit.patch, vit.width, traits)
        absolute = abs_pos and traits.positions == "absolute"
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + vit.grid**2, vit.width)) if absolute else None
        if self.prefix != "drop":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, vit.width))
            if traits.registers:
                self.reg_token = nn.Parameter(torch.zeros(1, traits.registers, vit.width))
        self.rope = rotary_positions(vit.width // vit.heads, traits)
        self.norm_pre = norm_layer(traits)(vit.width) if traits.pre_norm else nn.Identity()
        self.is_global = tuple(index in chosen for index in range(vit.depth))
        rates = [drop_path * index / max(vit.depth - 1, 1) for index in range(vit.depth)]
        self.blocks = nn.ModuleList(
            self._block(index, image // vit.patch, rel_pos, rate) for index, rate in enumerate(rates)
        )
        self.norm = norm_layer(traits)(vit.width) if norm else nn.Identity()
        for token in (self.pos_embed, *(getattr(self, name, None) for name in PREFIX)):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        if self.pos_embed is not None and interpolation == "regenerate":
            self.pos_embed.requires_grad_(False)  # a fixed table, computed for each grid
        self.apply(_initialise)

    def _block(self, index: int, grid: int, rel_pos: bool, drop_path: float) -> Block:
        """Return block `index` for images of `grid` patches along a side."""
        vit, traits = self.vit, self.traits
        added = rel_pos and traits.positions == "absolute" and not traits.rotary
        return Block(
            vit.width,
            vit.heads,
            window=0 if self.is_global[index] else self.window,
            grid=grid,
            rel_pos=added or traits.windows is not None,
            drop_path=drop_path,
            traits=traits,
            prefix=self.prefix,
        )

    def freeze(self) -> None:
        """Freeze all weights, stay in eval mode even if the detector trains, and store no activations."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ViTDet:
        """As for every module, except that a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the last block, (B, D, h, w)."""
        learns = torch.is_grad_enabled() and not self.frozen
        with torch.set_grad_enabled(learns):
            tokens_BhwD, _ = self.encode(images)
        map_BDhw = tokens_BhwD.permute(0, 3, 1, 2)
        if learns or self.traits.pre_norm or self.traits.patch_norm or not isinstance(self.norm, nn.Identity):
            return map_BDhw  # a copy would change the rounding of its gradient
        return map_BDhw.contiguous()  # by channel, as with gradients: the same bits after it

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of the patches (B, h, w, D) and of the prefix (B, P, D) if kept, after the final norm."""
        tokens_BhwD = self.patch_embed(images)
        grid = (tokens_BhwD.shape[1], tokens_BhwD.shape[2])
        if self.pos_embed is not None:
            tokens_BhwD = tokens_BhwD + self._positions(self.pos_embed, grid)
        tokens_BhwD = self.norm_pre(tokens_BhwD)
        if not torch.is_grad_enabled():  # a convolution leaves them by channel, and so would every sum
            tokens_BhwD = tokens_BhwD.contiguous()
        prefix_BPD = self._prefix(tokens_BhwD)
        whole, windowed = self._ropes(grid)
        for block, is_global in zip(self.blocks, self.is_global, strict=True):
            rope = whole if is_global else windowed
            if self.recompute and torch.is_grad_enabled():
                tokens_BhwD, prefix_BPD = checkpoint(block, tokens_BhwD, prefix_BPD, rope, use_reentrant=False)
            else:
                tokens_BhwD, prefix_BPD = block(tokens_BhwD, prefix_BPD, rope)
        return self.norm(tokens_BhwD), None if prefix_BPD is None else self.norm(prefix_BPD)

    def _positions(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the rows of the patches, (1, h, w, D) or (h, w, D), from the table (1, 1 + n * n, D)."""
        if self.positions == "resize":
            return resize_positions(table, grid, self.interpolation)[:, 1:].unflatten(1, grid)
        side = square_side(table)
        times = [-(-new // side) for new in grid]
        return table[0, 1:].unflatten(0, (side, side)).repeat(*times, 1)[: grid[0], : grid[1]]

    def _prefix(self, tokens_BhwD: Tensor) -> Tensor | None:
        """Return class token and registers (B, P, D) before the first block, or a copy of them for each window."""
        if self.prefix == "drop":
            return None
        token = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
        first = torch.cat([token, self.reg_token], dim=1) if self.traits.registers else token
        first = self.norm_pre(first.to(tokens_BhwD.dtype))
        copied = self.prefix == "copies" and not all(self.is_global)
        copies = count_windows(tokens_BhwD.shape[1:3], self.window) if copied else 1
        return first.repeat(1, copies, 1).expand(len(tokens_BhwD), -1, -1)

    def _ropes(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Return the rotary positions of global and of windowed blocks: (h w, 2 d), and (N, 2 d) or (W, N, 2 d)."""
        if self.rope is None:
            return None, None
        whole, sides_of = self.rope(grid), sides(self.window)
        if self.rope_windows == "window":
            return whole, self.rope(sides_of)
        filled = [-(-side // of) * of for side, of in zip(grid, sides_of, strict=True)]
        if tuple(filled) != grid:
            raise ValueError(
                f"rope_windows=image needs windows that divide the grid; {sides_of} do not divide {grid}. Use "
                "rope_windows=window, or another window"
            )
        cut = whole.unflatten(0, grid).unflatten(1, (-1, sides_of[1])).unflatten(0, (-1, sides_of[0]))
        return whole, cut.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def load_encoder(self, state: Mapping[str, Tensor], traits: Traits = PLAIN, kernel: Kernel = "bicubic") -> None:
        """Load an encoder's weights (from `backbones.checkpoint.load_encoder`); added `rel_pos_*` stay zero.

        A kernel for patches of another size is resampled (see `config.Kernel`); a position table for another grid is
        resized, bicubic, or computed if it is a fixed one (`interpolation="regenerate"`). A table without a class
        token's row gets a row of zeros. A table of relative positions is stretched once, to the windows and to the
        image, and trained from there.

        Raises:
            ValueError: if the encoder's `traits` differ from this ViTDet's, or its width or depth differs; names the
                first weight that does not fit.
        """
        if not (traits == self.traits or (traits.mae_like and self.traits.mae_like)):
            raise ValueError(f"the encoder has {traits}, but this ViTDet was built for {self.traits}")
        own = self.state_dict()
        left_out = {"norm.weight", "norm.bias", *PREFIX} - set(own)
        given = {key: value for key, value in state.items() if key not in left_out}
        if self.pos_embed is None:
            given.pop("pos_embed", None)
        elif not traits.class_token:
            table = given["pos_embed"]
            given["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        for key in [key for key in given if key in own and given[key].shape != own[key].shape]:
            if key == "patch_embed.proj.weight":
                given[key] = _resampled_kernel(given[key], own[key].shape[-1], kernel)
            elif key == "pos_embed":
                how: Interpolation = "regenerate" if self.interpolation == "regenerate" else "bicubic"
                given[key] = _resampled_positions(given[key], own[key], how)
            elif key.endswith(RELATIVE):
                given[key] = self._resampled_relative(given[key], own[key])
            elif key.endswith(DECOMPOSED):
                given[key] = resize_decomposed(given[key], len(own[key]))
        needed = {key for key in own if ".rel_pos_" not in key or traits.windows is not None}
        wrong = sorted(needed ^ set(given)) or [key for key in given if given[key].shape != own[key].shape]
        if wrong:
            shapes = [tuple(where[wrong[0]].shape) if wrong[0] in where else "none" for where in (given, own)]
            raise ValueError(
                f"the encoder does not fit this ViTDet ({self.vit}): its {wrong[0]} is {shapes[0]}, not {shapes[1]}"
            )
        self.load_state_dict(given, strict=False)

    def _resampled_relative(self, table: Tensor, like: Tensor) -> Tensor:
        """Resize a table of relative positions to the grid of `like`, with class token rows if `like` has them."""
        side, kept = table_side(len(like))
        resized = resize_relative(table, (side, side), self.relative_resize)
        return resized if kept else resized[: len(resized) - table_side(len(table))[1]]


def _require_fit(vit: ViT, traits: Traits, global_blocks: Sequence[int], image: int, prefix: Prefix) -> None:
    """Raise the errors that `ViTDet` documents."""
    if any(not 0 <= index < vit.depth for index in global_blocks):
        raise ValueError(f"global_blocks={tuple(global_blocks)}: the encoder's blocks are 0..{vit.depth - 1}")
    if image % vit.patch:
        raise ValueError(f"image={image} must be a multiple of the encoder's patch={vit.patch}")
    if (reason := vitdet_reason(traits, prefix)) is not None:
        raise ValueError(reason)


def _initialise(module: nn.Module) -> None:
    """Initialise as detectron2 does: truncated normals for linear maps; torch's default for the rest."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _resampled_kernel(kernel: Tensor, patch: int, how: Kernel) -> Tensor:
    """Resample a patch embedding's kernel (D, 3, p, p) to another patch side."""
    if how == "bicubic":
        return resize_kernel(kernel, patch)
    resampled: Tensor = resample_patch_embed(kernel, [patch, patch])
    return resampled


def _resampled_positions(table: Tensor, like: Tensor, how: Interpolation) -> Tensor:
    """Resize a position table (1, 1 + n * n, D) to another square grid."""
    return resize_positions(table, (square_side(like), square_side(like)), how)
