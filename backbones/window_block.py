"""A pre-norm block on a grid of tokens that attends in windows or to the whole grid.

`ViTDet` is made of these; so is an encoder whose own blocks attend in windows (`Traits.windows`).
"""

# B image, h and w grid of patches, W window, P token of the prefix, D width

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from mimbench.backbones.blocks import LAYER_SCALE, build_mlp, norm_layer
from mimbench.backbones.config import Prefix, Traits, ViT
from mimbench.backbones.drop_path import can_draw_first, drawn, passed_by, scaled
from mimbench.backbones.window_attention import Side, WindowAttention, sides

PLAIN = Traits()


class Block(nn.Module):
    """A pre-norm block on a grid of tokens and the prefix tokens."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: Side,
        grid: int,
        rel_pos: bool,
        drop_path: float,
        traits: Traits = PLAIN,
        prefix: Prefix = "drop",
    ) -> None:
        """Build the block; `window` 0 attends globally (see `WindowAttention`); `prefix`: see `vitdet`."""
        super().__init__()
        seen = traits.class_token and (prefix == "copies" or (prefix == "global" and not window))
        self.norm1 = norm_layer(traits)(width)
        self.attn = WindowAttention(
            width, heads, window=window, grid=grid, rel_pos=rel_pos, traits=traits, class_rows=seen
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm_layer(traits)(width)
        self.mlp = build_mlp(width, traits)
        self.sees_prefix = seen
        self.skip_dropped = False  # at one image, do not compute what drop path drops (drop_path.py)
        if traits.layer_scale and traits.gammas:
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((width,), LAYER_SCALE)) for _ in range(2))
        elif traits.layer_scale:
            self.ls1, self.ls2 = LayerScale(width, LAYER_SCALE), LayerScale(width, LAYER_SCALE)

    def forward(
        self, tokens_BhwD: Tensor, prefix_BPD: Tensor | None = None, rope: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map tokens (B, h, w, D) and the prefix to the same shapes; `rope` as in `WindowAttention`."""
        if prefix_BPD is None or not self.sees_prefix:
            tokens_BhwD = self._with(1, tokens_BhwD, lambda tokens: self.attn(self.norm1(tokens), None, rope)[0])
            return self._with(2, tokens_BhwD, lambda tokens: self.mlp(self.norm2(tokens))), prefix_BPD
        windows = self._windows(tokens_BhwD)
        normed_BWPD = self.norm1(prefix_BPD).unflatten(1, (windows, -1))
        attended, first = self.attn(self.norm1(tokens_BhwD), normed_BWPD, rope)
        tokens_BhwD, prefix_BPD = self._added(tokens_BhwD, prefix_BPD, 1, attended, first.flatten(1, 2))
        made = (self.mlp(self.norm2(part)) for part in (tokens_BhwD, prefix_BPD))
        return self._added(tokens_BhwD, prefix_BPD, 2, *made)

    def _with(self, which: int, tokens_BhwD: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the output of the block's attention (1) or MLP (2), scaled and with drop path, to the tokens."""
        if not (self.skip_dropped and can_draw_first(self.drop_path, len(tokens_BhwD))):
            return tokens_BhwD + self.drop_path(self._scaled(which, branch(tokens_BhwD)))
        if drawn(self.drop_path):
            return tokens_BhwD + scaled(self._scaled(which, branch(tokens_BhwD)), self.drop_path)
        return passed_by(tokens_BhwD, self._parameters_of(which))

    def _parameters_of(self, which: int) -> Iterator[nn.Parameter]:
        """Yield the parameters of the block's attention (1) or MLP (2), with its norm and scale."""
        names = {f"norm{which}", f"gamma_{which}", f"ls{which}", "attn" if which == 1 else "mlp"}
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] in names:
                yield parameter

    def _windows(self, tokens_BhwD: Tensor) -> int:
        """The number of windows of the grid; 1 in a global block."""
        return count_windows(tokens_BhwD.shape[1:3], self.attn.window) if self.attn.window else 1

    def _added(
        self, tokens_BhwD: Tensor, prefix_BPD: Tensor, which: int, grid: Tensor, prefix: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the output of the block's attention (1) or MLP (2), scaled and with drop path, to the tokens."""
        if isinstance(self.drop_path, nn.Identity):
            return tokens_BhwD + self._scaled(which, grid), prefix_BPD + self._scaled(which, prefix)
        kept_B = self.drop_path(tokens_BhwD.new_ones(len(tokens_BhwD), 1, 1, 1))
        tokens_BhwD = tokens_BhwD + kept_B * self._scaled(which, grid)
        return tokens_BhwD, prefix_BPD + kept_B[:, 0] * self._scaled(which, prefix)

    def _scaled(self, which: int, tokens: Tensor) -> Tensor:
        """Multiply by LayerScale, if the encoder has it."""
        if hasattr(self, f"gamma_{which}"):
            return tokens * getattr(self, f"gamma_{which}")
        if hasattr(self, f"ls{which}"):
            scaled: Tensor = getattr(self, f"ls{which}")(tokens)
            return scaled
        return tokens


def count_windows(grid: Sequence[int], window: Side) -> int:
    """Return the number of windows of a grid of (rows, columns), including those that extend beyond it."""
    down, across = (-(-side // of) for side, of in zip(grid, sides(window), strict=True))
    return down * across


class WindowedBlock(Block):
    """One of the blocks of an encoder that attends in windows, on a row of tokens instead of a grid."""

    def __init__(self, shape: ViT, traits: Traits, index: int, drop_path: float) -> None:
        """Build block `index` of the encoder."""
        assert traits.windows is not None
        window = 0 if index in traits.windows.global_blocks else traits.windows.side
        grid = traits.windows.side_of(index, shape.grid)
        options = {"window": window, "grid": grid, "rel_pos": True, "drop_path": drop_path, "traits": traits}
        super().__init__(shape.width, shape.heads, **options)  # type: ignore[arg-type]

    def forward(self, tokens_BTD: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Map tokens (B, h w, D) of a grid (h, w) to the same shape."""
        made, _ = super().forward(tokens_BTD.unflatten(1, grid))
        return made.flatten(1, 2)
