"""Parameter groups (weight decay, layer-wise learning rates), AdamW and LARS.

    groups = parameter_groups(model.named_parameters(), 0.05, no_decay=lambda name, p: p.ndim <= 1)
    optimizer = adamw(groups, lr=1e-3, betas=(0.9, 0.95))

A group's `lr_scale` multiplies the schedule's rate at each step (engine/training/step.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def parameter_groups(
    named_parameters: Iterable[tuple[str, Parameter]],
    weight_decay: float,
    no_decay: Callable[[str, Parameter], bool],
    layer_of: Callable[[str], int] | None = None,
    layers: int = 0,
    decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return groups of trainable parameters that share weight decay and learning-rate scale, by first appearance.

    Args:
        no_decay: returns whether a parameter gets no weight decay.
        layer_of: returns the layer of a parameter, 0 (patch embedding) to `layers` (head). None: one layer.
        layers: number of the last layer, depth + 1 for a ViT.
        decay: `lr_scale` of layer l is decay^(layers - l), so the head's is 1.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        layer = layers if layer_of is None else layer_of(name)
        spared = no_decay(name, parameter)
        if (layer, spared) not in groups:
            groups[layer, spared] = {
                "params": [],
                "weight_decay": 0.0 if spared else weight_decay,
                "lr_scale": decay ** (layers - layer),
                "name": f"layer{layer}_{'no_decay' if spared else 'decay'}",
            }
        groups[layer, spared]["params"].append(parameter)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return torch's fused AdamW: one pass over memory, several times faster than the default (benchmarks/)."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def with_momentum(state: dict[str, Any], parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """Return m = `momentum` m + g, stored in the optimiser's `state` of the parameter; m starts at zero."""
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    kept: Tensor = state["momentum"]
    return kept.mul_(momentum).add_(gradient)


def trust_factor(weight_norm: Tensor, gradient_norm: Tensor, trust: float) -> Tensor:
    """Return LARS's factor `trust` |w| / |g| for each pair of norms; 1 where either norm is zero."""
    both = (weight_norm > 0) & (gradient_norm > 0)
    return torch.where(both, trust * weight_norm / gradient_norm, torch.ones_like(weight_norm))


class LARS(torch.optim.Optimizer):
    """LARS as MAE's and CrossMAE's linear probe uses it (You et al., 2017; no Nesterov, no dampening).

    With gradient g and weight w of more than one dimension: g += wd w, then g *= eta |w| / |g| where both norms are
    positive. For every parameter: m = momentum m + g, w -= lr m. Nothing is read back from the device.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if parameter.ndim > 1:
                    gradient = _trusted(parameter, gradient, group["weight_decay"], group["trust"])
                moved = with_momentum(self.state[parameter], parameter, gradient, group["momentum"])
                parameter.add_(moved, alpha=-group["lr"])


def _trusted(weight: Tensor, gradient: Tensor, weight_decay: float, trust: float) -> Tensor:
    gradient = gradient.add(weight, alpha=weight_decay)
    return gradient * trust_factor(weight.norm(), gradient.norm(), trust)
