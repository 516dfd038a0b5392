"""Count operations and memory of models built without values (torch's `meta` device).

Operations: of a forward pass on one image, two for each multiply-add, attention included, by torch's counter. fvcore
counts by module (flops.py), but cannot trace a convolution on `meta`. On models that both can count they agree exactly
(tests).

Memory kept for the backward pass: tensors that autograd saves in float32, each storage once, without weights; under
autocast about a third less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Counted:
    """One method at one size, or one detector."""

    size: str  # "B"
    name: str
    architecture: str  # of its encoder: "ViT-B/16"
    told_by: tuple[Any, ...]  # equal for the runs that compute the same, as from `Counting.told_by` of the task
    parameters: int
    encoder: float  # operations
    decoder: float  # or the heads
    total: float  # including MaskAlign's teacher
    kept: int | None  # bytes per image, for the backward pass


class Saved:
    """Counts the bytes of the distinct storages that autograd saves, without parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {_key(parameter): 0 for parameter in model.parameters()}
        self._kept: list[Tensor] = []  # keeps storages alive, so that no address is reused

    @property
    def bytes(self) -> int:
        """So far."""
        return sum(self._known.values())

    def _take(self, tensor: Tensor) -> Tensor:
        if _key(tensor) not in self._known:
            self._known[_key(tensor)] = tensor.untyped_storage().nbytes()
            self._kept.append(tensor.detach())
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Return a context in which everything that autograd saves is counted."""
        with torch.autograd.graph.saved_tensors_hooks(self._take, lambda tensor: tensor):
            yield


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def count(model: nn.Module) -> int:
    """Return the number of all parameters, including fixed position tables."""
    return sum(parameter.numel() for parameter in model.parameters())


def kept_for_backward(model: nn.Module, *inputs: Any) -> int:
    """Return the bytes that autograd saves in a forward pass of `model`, in float32 and without weights.

    Tensors on `meta` pretend to be on a CPU, because torch selects other operations on `meta`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu") if _is_meta(model) else model
        saved = Saved(model)
        with saved.counting():
            output = model(*tree_map_only(Tensor, _as_on_cpu, inputs))  # kept, so that its graph is not freed
            found = saved.bytes
    del output
    return found


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _as_on_cpu(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor


def operations(model: nn.Module, *inputs: Any) -> float:
    """Return the operations of a forward pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return float(counter.get_total_flops())
