"""Drop path that does not compute a branch it drops, where a process has one image at a time.

    kept = drawn(module)                      # before the branch: whether it is kept
    tokens = tokens + scaled(branch(tokens), module) if kept else passed_by(tokens, parameters)

timm's DropPath computes every branch and multiplies the dropped ones by zero. At one image the draw can come first. Its
random number comes from the CPU's generator, because reading one from a GPU waits for it: on a CPU these are timm's
draws and the results are the same bits, on a GPU they are others of the same distribution. The parameters of a branch
that is passed by get gradients of zeros, as they would from a branch that is multiplied by zero: optimisers decay
weights and moments, and processes exchange gradients, as always.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn


def can_draw_first(module: nn.Module, images: int) -> bool:
    """Return whether `module` is a DropPath that drops the branch of a single image, in a training as it is."""
    drops = isinstance(module, DropPath) and module.training and bool(module.drop_prob)
    return drops and images == 1 and not torch.compiler.is_compiling()


def drawn(module: nn.Module) -> bool:
    """Draw whether the branch of one image is kept."""
    assert isinstance(module, DropPath)
    return bool(torch.empty(1).bernoulli_(1 - (module.drop_prob or 0.0)))


def scaled(branch: Tensor, module: nn.Module) -> Tensor:
    """Return a kept branch as timm's DropPath scales it."""
    assert isinstance(module, DropPath)
    kept = 1 - (module.drop_prob or 0.0)
    return branch * branch.new_ones(1).div_(kept) if module.scale_by_keep and kept > 0 else branch


def passed_by(tokens: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return `tokens`; the parameters of the branch that was not computed get gradients of zeros."""
    through: Tensor = _PassedBy.apply(tokens, *parameters)
    return through


class _PassedBy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, *parameters: Tensor) -> Tensor:
        ctx.empty = [(one.shape, one.dtype, one.device) for one in parameters]
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        zeros = (
            torch.zeros(shape, dtype=dtype, device=device) if learns else None
            for (shape, dtype, device), learns in zip(ctx.empty, needed, strict=True)
        )
        return gradients[0], *zeros
