"""The forms of ViTDet's global attention with relative positions, timed on a device; a part of benchmarks/gpu.py.

Forward and backward pass of one image at 1,024 pixels, in bf16, for each size of encoder. All forms must agree within
bf16's rounding, values and gradients. The faster of folded and masked belongs in `FASTEST` of
backbones/window_attention.py. `flex` is torch's flex attention, compiled on a GPU: mimbench does not have it, because
nobody has measured it; a GPU on which it wins is the reason to add it. On a CPU it has no backward pass, so only its
output is compared, and its forward pass timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mimbench.backbones.window_attention import UNIT, attend_folded, attend_masked

HEADS = {"B": (12, 64), "L": (16, 64), "H": (16, 80)}  # number and width
NEAR = 0.05  # relative distance, in bf16
CALLS = 5  # between two looks at the clock


def attention(device: torch.device, seconds: float, *, toy: bool) -> Iterator[dict[str, Any]]:
    """Yield milliseconds of both forms and GiB at their peaks, for each size."""
    side = 8 if toy else 64
    for size, (heads, width) in HEADS.items():
        torch.manual_seed(0)
        shapes = [(1, heads, side**2, width)] * 3 + [(1, heads, side**2, side)] * 2
        inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
        inputs[0] *= width**-0.5
        line: dict[str, Any] = {"size": size, "capability": _capability(device)}
        found = {}
        for name in FORMS:
            try:
                found[name] = _pass(name, inputs)
                line[f"{name}_ms"], line[f"{name}_peak_gib"] = _timed(name, inputs, seconds)
            except RuntimeError as error:  # a kernel that this GPU, or this torch, does not have
                line[f"{name}_error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
        wanted = found.pop("folded")
        apart = max(_apart(one, other) for of in found.values() for one, other in zip(of, wanted, strict=False))
        assert apart < NEAR, f"the forms differ by {apart}"
        yield {**line, "apart": apart}


def _pass(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of all inputs; of flex attention on a CPU the output alone."""
    if name == "flex" and not inputs[0].is_cuda:
        with torch.no_grad():
            return [attend_flex(*inputs)]
    leaves = [one.detach().requires_grad_() for one in inputs]
    out = FORMS[name](*leaves)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]


def attend_flex(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Attend with the bias added to each logit where it is computed, by torch's flex attention."""
    columns = bias_w.shape[-1]

    def biased(logit: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return logit + bias_h[image, head, query, key // columns] + bias_w[image, head, query, key % columns]

    attend = _compiled() if q.is_cuda else flex_attention
    mixed: Tensor = attend(q, k, v, score_mod=biased, scale=1.0)
    return mixed


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


FORMS: dict[str, Callable[..., Tensor]] = {
    "folded": partial(attend_folded, fused=True, unit=UNIT),
    "masked": attend_masked,
    "flex": attend_flex,
}


def _timed(name: str, inputs: list[Tensor], seconds: float) -> tuple[float, float | None]:
    on_gpu = inputs[0].is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    begun, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - begun < seconds:
        for _ in range(CALLS):
            _pass(name, inputs)
        calls += CALLS
        if on_gpu:
            torch.cuda.synchronize()
    taken = time.perf_counter() - begun
    return 1000 * taken / calls, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None


def _capability(device: torch.device) -> list[int] | None:
    return list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-12))
