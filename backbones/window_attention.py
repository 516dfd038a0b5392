"""Attention over a grid of tokens, in windows or over the whole grid, with the encoder's kind of positions.

Decomposed relative positions (ViTDet; detectron2's `Attention`): with q, k, v of a head, query at (y, x), key at (i,
j),

    logit = q . k / sqrt(width of a head) + q . R_h[y - i] + q . R_w[x - j]

The heads share the tables R_h and R_w. In a window of side S each has 2 S - 1 rows; for a grid of another size it is
interpolated linearly. Windows that extend beyond the bottom or the right are filled with tokens whose input is zero.
These take part in the softmax; their q, k and v equal the bias of the projection, so they skip the projection.

Implementation: the bias has low rank, so it can be folded into queries and keys exactly: the query's products with the
tables are appended to the query, the one-hot codes of row and column to the key. The result is plain attention, which
fused kernels compute without storing the matrix of logits. On a CPU two cases are faster in another way. Without
gradients, a large grid is computed a few rows of one head's queries at a time, while their logits are in the cache.
With gradients, a small window is computed by matrix products, whose backward pass reuses the probabilities. On a GPU
folded heads are filled up to a multiple of 8, which kernels take without copies. There the bias of a large grid can
also be added to the logits (`attend_masked`): a third of the products, but the bias is stored. `FASTEST` lists the GPUs
on which that is faster.
tests/backbones/test_vitdet.py compares all of them with the plain form.
"""

# B image or window, W window of an image, N token of a grid (h * w, row-major), P token before it (class token,
# registers), n head, h and w grid, D width of all heads, d width of a head

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.backbones.blocks import norm_layer
from mimbench.backbones.config import Traits
from mimbench.backbones.relative_table import CLASS_ROWS, relative_bias, resize_relative
from mimbench.backbones.rotary import rotated

Side = int | tuple[int, int]  # side of a window, or its rows and columns

PLAIN = Traits()
SMALL = 256  # up to this many tokens, matrix products are faster than the fused kernel in training on a CPU
LARGE = 1024  # from this many tokens, a few rows at a time are faster than the fused kernel at inference on a CPU
CACHED = 2**19  # logits of a few rows that fit in the cache


UNIT = 8  # a GPU's attention kernels take heads whose width is a multiple of this

Form = Literal["folded", "masked"]
# The faster form for a large grid by the GPU's compute capability, from `benchmarks/gpu.py --only attention`; GPUs that
# nobody has measured use "folded".
FASTEST: dict[tuple[int, int], Form] = {}


class WindowAttention(nn.Module):
    """Multi-head self-attention over a grid and the tokens before it, if any.

    Parameters are `qkv` and `proj`; with `rel_pos` also `rel_pos_h` and `rel_pos_w`; and, depending on the encoder's
    traits, `q_bias` and `v_bias`, `norm`, `relative_position_bias_table`, with timm's names.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: Side,
        grid: int,
        rel_pos: bool,
        traits: Traits = PLAIN,
        class_rows: bool = False,
    ) -> None:
        """Args:
        width: width of a token, over all heads.
        heads: number of heads.
        window: side of a window in tokens, or its rows and columns; 0 attends over the whole grid.
        grid: side of the whole grid; sets the size of a global block's tables.
        rel_pos: use decomposed relative positions.
        traits: the encoder's traits.
        class_rows: whether a table of relative positions has rows for the class token.
        """
        super().__init__()
        self.heads, self.window, self.rotates_halves = heads, window, traits.rope is None
        self.qkv = nn.Linear(width, 3 * width, bias=traits.qkv_bias and not traits.separate_bias)
        self.proj = nn.Linear(width, width, bias=traits.proj_bias)
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        self.q_bias: nn.Parameter | None = None
        self.v_bias: nn.Parameter | None = None
        self.relative_position_bias_table: nn.Parameter | None = None
        if traits.separate_bias:
            self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        if traits.positions == "relative":
            side = max(sides(window)) if window else grid
            rows = (2 * side - 1) ** 2 + (CLASS_ROWS if class_rows else 0)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        elif rel_pos:
            rows = 2 * (max(sides(window)) if window else grid) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(rows, width // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(rows, width // heads))
        self.norm = norm_layer(traits)(width) if traits.attention_norm else nn.Identity()

    def forward(
        self, tokens_BhwD: Tensor, prefix_BWPD: Tensor | None = None, rope: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map tokens (B, h, w, D) and the tokens before them to the same shapes.

        Args:
            tokens_BhwD: the tokens of the grid.
            prefix_BWPD: the tokens before the patches, for each window W or once for the whole grid.
            rope: sines and cosines (N, 2 d) of the N positions in a window, or (W, N, 2 d) if they differ by window.
        """
        images, height, width, channels = tokens_BhwD.shape
        side_h, side_w = sides(self.window) if self.window else (height, width)
        down, across = -(-height // side_h), -(-width // side_w)  # windows, rounded up
        qkv = self._filled(self._project(tokens_BhwD), down * side_h, across * side_w)
        qkv = qkv.view(images, down, side_h, across, side_w, 3, self.heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, images * down * across, self.heads, side_h * side_w, -1).unbind(0)
        if rope is not None:
            table = rope if rope.ndim == 2 else rope[:, None].repeat(images, 1, 1, 1)
            q, k = (rotated(part, table, self.rotates_halves) for part in (q, k))
        before = 0
        if prefix_BWPD is not None:
            before = prefix_BWPD.shape[2]
            own = self._project(prefix_BWPD).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
            q, k, v = (torch.cat([first, rest], dim=2) for first, rest in zip(own, (q, k, v), strict=True))
        mixed = self._attend(q, k, v, (side_h, side_w), before)
        first = None
        if prefix_BWPD is not None:
            first = mixed[:, :, :before].transpose(1, 2).flatten(2).view(*prefix_BWPD.shape)
            first, mixed = self.proj(self.norm(first)), mixed[:, :, before:]
        mixed = mixed.unflatten(2, (side_h, side_w)).unflatten(0, (images, down, across)).permute(0, 1, 4, 2, 5, 3, 6)
        mixed = mixed.reshape(images, down * side_h, across * side_w, channels)
        return self.proj(self.norm(mixed[:, :height, :width])), first

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], before: int) -> Tensor:
        """Attend: (B, n, P + N, d), the P tokens before the patches first."""
        if self.relative_position_bias_table is not None:
            rows = resize_relative(self.relative_position_bias_table, grid)
            return F.scaled_dot_product_attention(q, k, v, relative_bias(rows, grid, before).to(q.dtype))
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return F.scaled_dot_product_attention(q, k, v)
        towards_h, towards_w = _relative(self.rel_pos_h, grid[0]), _relative(self.rel_pos_w, grid[1])
        return attend(q, k, v, towards_h, towards_w, before)

    def _project(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values (..., 3 D)."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(tokens)
        return F.linear(tokens, self.qkv.weight, self._bias())

    def _bias(self) -> Tensor | None:
        """The bias of the projection, which equals queries, keys and values of a zero input."""
        if self.q_bias is None or self.v_bias is None:
            bias: Tensor | None = self.qkv.bias
            return bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _filled(self, qkv_BhwD: Tensor, height: int, width: int) -> Tensor:
        """Pad `qkv_BhwD` to a grid of (height, width) with the values of zero inputs."""
        images, rows, columns, channels = qkv_BhwD.shape
        if (rows, columns) == (height, width):
            return qkv_BhwD
        bias = self._bias()
        empty = qkv_BhwD.new_zeros(channels) if bias is None else bias.to(qkv_BhwD.dtype)
        filled = empty.expand(images, height, width, channels).clone()
        filled[:, :rows, :columns] = qkv_BhwD
        return filled


def sides(window: Side) -> tuple[int, int]:
    """Return the rows and columns of a window."""
    return window if isinstance(window, tuple) else (window, window)


def resize_decomposed(table_Rd: Tensor, rows: int) -> Tensor:
    """Return a table of decomposed relative positions with `rows` rows, linearly, as detectron2 and SAM do."""
    if len(table_Rd) == rows:
        return table_Rd
    return F.interpolate(table_Rd.T[None], size=rows, mode="linear")[0].T


def _relative(table_Rd: Tensor, side: int) -> Tensor:
    """Return (side, side, d): for positions y and i along one axis, the row of the table for y - i."""
    table_Rd = resize_decomposed(table_Rd, 2 * side - 1)
    position = torch.arange(side, device=table_Rd.device)
    return table_Rd[position[:, None] - position + side - 1]


def attend(q: Tensor, k: Tensor, v: Tensor, towards_h: Tensor, towards_w: Tensor, before: int = 0) -> Tensor:
    """Attend with the bias q . towards_h[y, i] + q . towards_w[x, j], by the fastest of the forms below.

    Args:
        q, k, v: (B, n, P + N, d), N = h * w.
        towards_h, towards_w: (h, h, d) and (w, w, d).
        before: P, the number of tokens before the grid; they have no bias.

    Returns:
        (B, n, P + N, d), contiguous.
    """
    tokens, on_cpu = q.shape[2], q.device.type == "cpu"
    bias_h, bias_w = (_after(before, bias) for bias in _biases(q[:, :, before:], towards_h, towards_w))
    q = q * q.shape[-1] ** -0.5
    if on_cpu and tokens >= LARGE and not before and not torch.is_grad_enabled():
        return attend_by_rows(q, k, v, bias_h, bias_w)
    on_gpu = q.device.type == "cuda"
    if FASTEST and on_gpu and tokens >= LARGE and FASTEST.get(torch.cuda.get_device_capability(q.device)) == "masked":
        return attend_masked(q, k, v, bias_h, bias_w)
    fused = not (on_cpu and tokens <= SMALL and torch.is_grad_enabled())
    return attend_folded(q, k, v, bias_h, bias_w, fused=fused, unit=UNIT if on_gpu else 1)


def _after(before: int, rows: Tensor) -> Tensor:
    """Put `before` rows of zeros before `rows` (..., N, C): tokens before the grid have no relative positions."""
    return F.pad(rows, (0, 0, before, 0)) if before else rows


def _biases(q: Tensor, towards_h: Tensor, towards_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, n, N, h) and (B, n, N, w): the biases of each query for each row and each column of keys."""
    query = q.unflatten(2, (len(towards_h), len(towards_w)))
    bias_h = torch.einsum("Bnhwd,hid->Bnhwi", query, towards_h)
    bias_w = torch.einsum("Bnhwd,wjd->Bnhwj", query, towards_w)
    return bias_h.flatten(2, 3), bias_w.flatten(2, 3)


def attend_folded(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor, *, fused: bool, unit: int = 1
) -> Tensor:
    """Attend with the bias folded into scaled queries and keys; `fused` never stores the logits.

    The fused kernel gets heads whose width is a multiple of `unit`: 96, not 92.
    """
    rows, columns, width = bias_h.shape[-1], bias_w.shape[-1], v.shape[-1]
    row_code = torch.eye(rows, dtype=k.dtype, device=k.device).repeat_interleave(columns, 0)
    column_code = torch.eye(columns, dtype=k.dtype, device=k.device).repeat(rows, 1)
    code = _after(k.shape[2] - rows * columns, torch.cat([row_code, column_code], dim=1))
    query = torch.cat([q, bias_h, bias_w], dim=-1)
    key = torch.cat([k, code.expand(*k.shape[:2], -1, -1)], dim=-1)
    if not fused:
        return (query @ key.transpose(-2, -1)).softmax(-1) @ v
    empty = -query.shape[-1] % unit
    if empty:
        query, key = F.pad(query, (0, empty)), F.pad(key, (0, empty))
    value = F.pad(v, (0, rows + columns + empty))  # fused kernels need the same width for all three
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :width].contiguous()


def attend_masked(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Attend with the bias added to the logits of scaled queries: (B, n, P + N, P + N) numbers, stored for backward."""
    bias = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2)
    bias = F.pad(bias, (k.shape[2] - bias.shape[-1], 0)).to(q.dtype)  # keys before the grid have no bias
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).contiguous()


def attend_by_rows(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """The same, one head and a few rows of queries at a time, without gradients."""
    rows, columns = bias_h.shape[-1], bias_w.shape[-1]
    tokens = rows * columns
    step = columns * max(CACHED // (columns * tokens), 1)
    mixed = torch.empty(q.shape, dtype=v.dtype, device=v.device)
    heads = (part.flatten(0, 1) for part in (mixed, q, k, v, bias_h, bias_w))
    for out_Nd, q_Nd, k_Nd, v_Nd, h_Nh, w_Nw in zip(*heads, strict=True):
        for first in range(0, tokens, step):
            some = slice(first, first + step)
            logits = (q_Nd[some] @ k_Nd.T).unflatten(-1, (rows, columns))
            logits += h_Nh[some, :, None]
            logits += w_Nw[some, None, :]
            out_Nd[some] = logits.flatten(-2).softmax(-1) @ v_Nd
    return mixed
