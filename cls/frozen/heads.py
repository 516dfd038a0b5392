"""Many linear classifiers on one feature, trained at once, each exactly as if trained alone.

    heads = Heads(width=768, classes=1000, count=5)
    heads((features_BD, label_B))["loss"].backward()
    HeadOptimizer(heads.parameters(), rates=[1.6, 6.4, ...], decays=[0, 0, ...], trust=0.001).step()

All heads share a batch norm without weights, because its statistics depend only on the feature, and are multiplied
with the feature in one matrix product. The gradient is computed in closed form: softmax minus the labels' indicator,
times the feature. This reads the logits half as often as autograd, and holds those of a few heads or images at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.engine.run.uploads import uploaded
from mimbench.engine.training.optim import trust_factor, with_momentum

# B image of a batch, H head, C class, D feature

LOGITS = {"cpu": 2**21, "cuda": 2**28}  # logits in memory at a time; 8 MiB fit the CPU cache
DIVERGED = 1e15  # norm of a head's weights; its square, and logits of any feature, are far from float32's 3e38


class Heads(nn.Module):
    """`count` classifiers of features of length `width`. All start from the same random weights."""

    def __init__(self, width: int, classes: int, count: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        first = drawn_weight(width, classes)
        self.weight = nn.Parameter(first.expand(count, -1, -1).clone())
        self.bias = nn.Parameter(torch.zeros(count, classes))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the mean of the heads' cross-entropies; each head receives the gradient of its own loss."""
        features_BD, label_B = batch
        losses_H = own_losses(self.norm(features_BD.float()), self.weight, self.bias, label_B)
        return {"loss": losses_H.mean()}

    def logits(self, features_BD: Tensor) -> Tensor:
        """Return logits (B, H, C)."""
        logits = F.linear(self.norm(features_BD.float()), self.weight.flatten(0, 1), self.bias.flatten())
        return logits.unflatten(1, self.bias.shape)


def drawn_weight(width: int, classes: int) -> Tensor:
    """Draw the initial weight (C, D) of a probe's linear layer, exactly as torch's layer does."""
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    return linear.weight.detach()


class _OwnLosses(torch.autograd.Function):
    """Cross-entropies of all heads; backward assumes that their mean is taken and scales it back for every head."""

    @staticmethod
    def forward(ctx: Any, features_BD: Tensor, weight_HCD: Tensor, bias_HC: Tensor, label_B: Tensor) -> Tensor:
        losses_H, weight_grad, bias_grad = losses_and_gradients(features_BD, weight_HCD, bias_HC, label_B)
        ctx.save_for_backward(weight_grad, bias_grad)
        return losses_H

    @staticmethod
    def backward(ctx: Any, grad_H: Tensor) -> tuple[None, Tensor, Tensor, None]:
        weight_grad, bias_grad = ctx.saved_tensors
        factor_H = grad_H * len(grad_H)  # undoes the mean over heads
        return None, weight_grad.mul_(factor_H[:, None, None]), bias_grad.mul_(factor_H[:, None]), None


def own_losses(features_BD: Tensor, weight_HCD: Tensor, bias_HC: Tensor, label_B: Tensor) -> Tensor:
    """Return the cross-entropy of each head (H,); backward of their mean gives each head its own gradient."""
    losses_H: Tensor = _OwnLosses.apply(features_BD, weight_HCD, bias_HC, label_B)  # type: ignore[no-untyped-call]
    return losses_H


def losses_and_gradients(
    features_BD: Tensor, weight_HCD: Tensor, bias_HC: Tensor, label_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean cross-entropy of each head (H,) and its gradients by weight (H, C, D) and bias (H, C).

    Under autocast the products run in its type; the softmax is always float32.
    """
    heads, classes, _ = weight_HCD.shape
    device = features_BD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    weights, biases, inputs_BD = weight_HCD.to(dtype), bias_HC.to(dtype), features_BD.to(dtype)
    weight_grad, bias_grad = torch.empty_like(weight_HCD), torch.zeros_like(bias_HC)
    losses_H = torch.zeros(heads, device=features_BD.device)
    most = LOGITS.get(device, LOGITS["cuda"])
    rows = min(len(label_B), max(1, most // classes))
    group = max(1, most // (rows * classes))  # heads in one product
    share = 1 / len(label_B)
    with torch.autocast(device, enabled=False):
        for number, (part_BD, labels) in enumerate(zip(inputs_BD.split(rows), label_B.split(rows), strict=True)):
            for start in range(0, heads, group):
                here = slice(start, start + group)
                losses, gradient_BHC = _residuals(part_BD, weights[here], biases[here], labels)
                losses_H[here] += losses
                bias_grad[here] += gradient_BHC.sum(0)
                flat, total = gradient_BHC.flatten(1).to(dtype), weight_grad[here].flatten(0, 1)
                if dtype == torch.float32:
                    total.addmm_(flat.T, part_BD, beta=min(number, 1), alpha=share)
                else:
                    (total if number else total.zero_()).add_(flat.T @ part_BD, alpha=share)
    return losses_H.mul_(share), weight_grad, bias_grad.mul_(share)


def _residuals(features_BD: Tensor, weight_HCD: Tensor, bias_HC: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the cross-entropies (H,), and their gradients by the logits (B, H, C)."""
    logits = torch.addmm(bias_HC.flatten(), features_BD, weight_HCD.flatten(0, 1).T).float()
    log_shares = torch.log_softmax(logits.view(-1, *bias_HC.shape), dim=2)
    index = label_B[:, None, None].expand(-1, len(bias_HC), 1)
    losses_H = -log_shares.gather(2, index).sum(dim=(0, 2))
    ones = log_shares.new_full((1, 1, 1), -1.0).expand_as(index)
    return losses_H, log_shares.exp_().scatter_add_(2, index, ones)


class HeadOptimizer(torch.optim.Optimizer):
    """LARS or SGD with a learning rate and a weight decay for each head, the first axis of every parameter.

    A group's `lr` (from the schedule, 1 at its peak) is multiplied by each head's rate. With `trust`, weights are
    updated as by `engine.training.optim.LARS`, with norms per head; without it, as by SGD with momentum. Biases (shape
    heads x classes) have no weight decay and no trust factor. A head whose weights reach a norm of `DIVERGED` keeps
    them: its rate is too high, and an overflow would end the training of all heads.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rates: Sequence[float],
        decays: Sequence[float],
        trust: float | None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(
            [{"params": list(parameters), "rates": list(rates), "decays": list(decays)}],
            {"lr": 1.0, "trust": trust, "momentum": momentum},
        )

    def add_heads(self, parameters: Iterable[nn.Parameter], rates: Sequence[float], decays: Sequence[float]) -> None:
        """Add heads, for example those of another feature."""
        self.add_param_group({"params": list(parameters), "rates": list(rates), "decays": list(decays)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update once from the gradients and overwrite them: new memory would cost more time than the arithmetic."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                rates = _by_head([group["lr"] * rate for rate in group["rates"]], parameter)
                if parameter.ndim > 2:
                    norm_H = parameter.flatten(1).norm(dim=1)
                    gradient = _decayed(parameter, gradient, group["decays"])
                    if group["trust"] is not None:
                        gradient.mul_(_trust(norm_H, gradient, group["trust"]))
                    rates = rates * (norm_H < DIVERGED).view_as(rates)
                moved = with_momentum(self.state[parameter], parameter, gradient, group["momentum"])
                parameter.addcmul_(moved, rates, value=-1.0)


def _by_head(values: Sequence[float], parameter: Tensor) -> Tensor:
    """Return one number per head, shaped to multiply `parameter`."""
    return uploaded(values, parameter.dtype, parameter.device).view(-1, *[1] * (parameter.ndim - 1))


def _decayed(weight: Tensor, gradient: Tensor, decays: Sequence[float]) -> Tensor:
    return gradient.addcmul_(weight, _by_head(decays, weight)) if any(decays) else gradient


def _trust(norm_H: Tensor, gradient: Tensor, trust: float) -> Tensor:
    """Return LARS's factor of each head: `trust` |w| / |g|, or 1 if either norm is zero."""
    factor = trust_factor(norm_H, gradient.flatten(1).norm(dim=1), trust)
    return factor.view(-1, *[1] * (gradient.ndim - 1))
