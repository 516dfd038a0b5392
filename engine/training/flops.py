"""Operations of a forward pass, for each module, counted by fvcore; fused attention is included.

    found = operations(model, images)          # {"": all, "blocks": ..., "blocks.0": ..., "blocks.0.attn.qkv": ...}
    print(module_table(model, images))         # fvcore's table, a row for each module

A multiply-add is two operations. Only products count: linear layers, convolutions, matrix products and attention.
fvcore ignores `scaled_dot_product_attention`, so this file registers a handle for it: without the handle, fvcore counts
350.8 of the 659.8 billion multiply-adds of a ViT-B/16 at 1024 pixels. Norms are left out, as in papers.

Models on torch's `meta` device are counted like any other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")


def operations(model: nn.Module, *inputs: Any) -> dict[str, float]:
    """Return the operations of each module of `model` in a forward pass on `inputs`; the total has the key "".

    Keys are module names in `model`; a module's count includes its submodules.
    """
    with _quiet():
        return {_inner(name): 2.0 * count for name, count in _analysis(model, inputs).by_module().items() if name}


def total_operations(model: nn.Module, *inputs: Any) -> float:
    """Return the operations of a forward pass on `inputs`."""
    return operations(model, *inputs)[""]


def module_table(model: nn.Module, *inputs: Any, depth: int = 3) -> str:
    """Return fvcore's table of `model` as Markdown: parameters and multiply-adds of each module, to `depth` levels."""
    with _quiet():
        from fvcore.nn import flop_count_table

        text: str = flop_count_table(_analysis(model, inputs), max_depth=depth + 1)
        return text


def _inner(name: str) -> str:
    return name.partition(".")[2]


class _Call(nn.Module):
    """A call of `model` on fixed inputs: tracing accepts only tensors, but methods take other arguments too."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, _: Tensor) -> Any:
        """Return the model's output."""
        return self.model(*self.inputs)


def _analysis(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(_Call(model, inputs), torch.zeros(()))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    return analysis.set_op_handle(**{f"aten::{norm}": _none for norm in NORMS})


def _attention(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of softmax(q kᵀ) v, for q (..., N, D), k (..., M, D) and v (..., M, E)."""
    query, key, value = (one.type().sizes() for one in inputs[:3])
    return float(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _none(inputs: list[Any], outputs: list[Any]) -> float:
    return 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings: fvcore needs the deprecated torch.jit, and the shapes that a trace fixes are fixed here anyway."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
