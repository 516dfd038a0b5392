"""A CrossMAE training step against the authors' or its plain form, and against MAE's (B1, B2, B3).

    python benchmarks/crossmae_step.py [--original PATH] [--size S|B] [--batch 16] [--repeats 5] [--json]

    B1  the step in fp32, forward and backward. Loss equal to 1e-6, gradients to 1e-5.
    B2  the step as it is run (precision=auto, fused AdamW) against the peer's in fp32 with torch's default AdamW and
        a gradient norm nobody reads. Loss equal to 2e-2. Its floor assumes bf16 in hardware.
    B3  CrossMAE (predict .25, 12 decoder blocks) against MAE (8 decoder blocks), both fp32, forward and backward.
        For ViT-B the steps are 38.7 and 58.8 GFLOP an image, counted.

Sides take turns and the least time of each counts. The machine's matrix-product rate is measured in the same run.
Ends with status 1 if a ratio is below its floor. Size T is a toy to try the script with; it has no floors.

The peer of B1 and B2 is the authors' code where --original names a checkout of it, else the plain form
(crossmae_plain.py): embed every patch and then gather, boolean selection, patchify everything, stack the maps on the
last axis. Parts of the step are measured in crossmae_parts.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from crossmae_plain import authors_loss, authors_model, plain_loss
from measure import Measured, Target, least, relative, take_turns, total_failed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import autocast_dtype, device_name
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, RandomMasking
from mimbench.pretrain.masking.strategies import Masked, Random
from mimbench.pretrain.methods.crossmae import CrossMAE
from mimbench.pretrain.methods.mae import MAE
from mimbench.pretrain.methods.method import Method

BETAS, LR, DECAY = (0.9, 0.95), 1e-4, 0.05
SHAPES = {"T": ViT(64, 2, 2, patch=8, image=32), "S": SIZES["S"], "B": SIZES["B"]}
DECODERS = {
    "T": CrossMAEConfig(depth=2, width=32, heads=2),
    "S": CrossMAEConfig(width=256, heads=8),
    "B": CrossMAEConfig(),
}
# CrossMAE and MAE, an image, forward and backward, as counted in the authors' code. Ours embed fewer patches (-0.9 %
# at most), and attention is counted here without the recomputation that a fused kernel does (-0.6 %).
GFLOPS = {"B": (38.7, 58.8)}


TARGETS = {
    "B1": {"S": Target(0.97, 1.05, 1.10), "B": Target(0.97, 1.05, 1.10)},
    "B2": {"S": Target(1.9, 2.6, 4.9), "B": Target(2.2, 3.2, 4.9)},
    "B3": {"S": Target(1.40, 1.52, 1.53), "B": Target(1.40, 1.52, 1.53)},
}


@dataclass(frozen=True)
class Case:
    """What the benchmarks are run on."""

    size: str
    model: CrossMAE
    images: Tensor
    noise: Tensor
    repeats: int
    original: Path | None = None

    def ours(self, model: Method, predict: float = 0.25) -> Tensor:
        """The loss of one of our models, masks drawn as in training."""
        return model(self.images, masked(self.noise, model.shape, predict))

    def peer(self, model: CrossMAE) -> tuple[nn.Module, Callable[[], Tensor]]:
        """A model with the weights of `model`, and its loss in the authors' form, or the plain one."""
        if self.original is None:
            return model, partial(plain_loss, model, self.images, self.noise)
        theirs = authors_model(self.original, model)
        return theirs, partial(authors_loss, theirs, self.images, self.noise)

    def target(self, name: str) -> Target | None:
        """What benchmark `name` has to reach at this size."""
        return TARGETS[name].get(self.size)


# ------------------------------------------------------------------------------------------------------- measurement


def masked(noise: Tensor, shape: ViT, predict: float) -> Masked:
    """Three quarters hidden."""
    return Random(RandomMasking(mask_ratio=0.75, predict=predict))(noise, None, (shape.grid, shape.grid), 0.0)


def gemm_rate(shape: ViT, batch: int, dtype: torch.dtype) -> float:
    """GFLOP/s of the product that a ViT's MLP is made of."""
    rows = batch * (shape.grid**2 // 4 + 1)
    a, b = torch.randn(rows, shape.width, dtype=dtype), torch.randn(shape.width, 4 * shape.width, dtype=dtype)
    return 2 * rows * shape.width * 4 * shape.width / least(lambda: a @ b, 20) / 1e9


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of `loss`, taken out of `model`."""
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def check_equal(ours: nn.Module, our_loss: Tensor, peer: nn.Module, peer_loss: Tensor) -> tuple[float, float]:
    """Relative difference of loss and of the worst gradient between the model and its peer."""
    loss = relative(our_loss.detach(), peer_loss.detach())
    ours_by_name, peer_by_name = gradients(ours, our_loss), gradients(peer, peer_loss)
    worst = max(relative(ours_by_name[name], peer_by_name[name]) for name in peer_by_name)
    assert loss <= 1e-6, f"losses differ by {loss:.1e}"
    assert worst <= 1e-5, f"gradients differ by {worst:.1e}"
    return loss, worst


def b1(case: Case) -> Measured:
    """Forward and backward in fp32."""
    model = case.model
    peer, peer_loss = case.peer(model)
    loss, worst = check_equal(model, case.ours(model), peer, peer_loss())

    def step(side: nn.Module, compute_loss: Callable[[], Tensor]) -> None:
        compute_loss().backward()
        side.zero_grad(set_to_none=True)

    least_ours, least_peer = take_turns(
        lambda: step(model, lambda: case.ours(model)), lambda: step(peer, peer_loss), case.repeats
    )
    note = f"loss differs by {loss:.0e}, gradients by {worst:.0e}"
    return Measured("B1", "s", least_ours, least_peer, case.target("B1"), note)


def b2(case: Case) -> Measured:
    """The whole optimiser step, each side with weights of its own."""
    device = case.images.device
    dtype = autocast_dtype(Compute(), device)
    fast, (slow, slow_loss) = copy.deepcopy(case.model), case.peer(copy.deepcopy(case.model))
    fast_groups, slow_groups = (
        parameter_groups(side.named_parameters(), DECAY, lambda name, p: p.ndim <= 1) for side in (fast, slow)
    )
    fused, default = adamw(fast_groups, LR, BETAS), torch.optim.AdamW(slow_groups, lr=LR, betas=BETAS)

    def ours() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = case.ours(fast)
        loss.backward()
        fused.step()
        fused.zero_grad(set_to_none=True)
        return loss.detach()

    def peer() -> Tensor:
        loss = slow_loss()
        loss.backward()
        torch.norm(torch.stack([torch.norm(p.grad, 2) for p in slow.parameters() if p.grad is not None]), 2)
        default.step()
        default.zero_grad()
        return loss.detach()

    difference = relative(ours(), peer())
    assert difference <= 2e-2, f"losses differ by {difference:.1e}"
    least_ours, least_peer = take_turns(ours, peer, case.repeats)
    note = f"{str(dtype or torch.float32).removeprefix('torch.')}, loss differs by {difference:.0e}"
    if dtype is None:
        note += "; no floor: this processor does not multiply in bf16"
    target = case.target("B2") if dtype else None
    return Measured("B2", "s", least_ours, least_peer, target, note)


def b3(case: Case) -> Measured:
    """CrossMAE's step against MAE's, and what both compute."""
    model = case.model
    mae = MAE(model.shape, MAEConfig(width=model.config.width, heads=model.config.heads))
    counted = (gflops(model, 0.25), gflops(mae, 0.75))
    for count, published in zip(counted, GFLOPS.get(case.size, counted), strict=True):
        assert abs(count - published) < 0.015 * published, f"{count:.1f} GFLOP an image where {published} is known"

    def step(side: Method, predict: float) -> None:
        case.ours(side, predict).backward()
        side.zero_grad(set_to_none=True)

    ours, peer = take_turns(lambda: step(model, 0.25), lambda: step(mae, 0.75), case.repeats)
    note = f"{counted[0]:.3g} and {counted[1]:.3g} GFLOP an image, {counted[1] / counted[0]:.2f} by count"
    return Measured("B3", "s", ours, peer, case.target("B3"), note)


def gflops(model: Method, predict: float) -> float:
    """GFLOP of forward and backward for one image, counted without computing anything."""
    ghost = copy.deepcopy(model).to("meta")
    images = torch.zeros(1, 3, model.shape.image, model.shape.image, device="meta")
    noise = torch.zeros(1, model.shape.grid**2, device="meta")
    with FlopCounterMode(display=False) as counter:
        ghost(images, masked(noise, model.shape, predict)).backward()
    return counter.get_total_flops() / 1e9


def measure(
    size: str, batch: int, repeats: int, original: Path | None = None
) -> tuple[list[Measured], dict[str, float]]:
    """All three benchmarks, and the matrix-product rates (GFLOP/s) before and after them."""
    torch.manual_seed(0)
    shape = SHAPES[size]
    model = CrossMAE(shape, DECODERS[size])
    images, noise = torch.randn(batch, 3, shape.image, shape.image), torch.rand(batch, shape.grid**2)
    case = Case(size, model, images, noise, repeats, original)
    rates = {"fp32": gemm_rate(shape, batch, torch.float32), "bf16": gemm_rate(shape, batch, torch.bfloat16)}
    results = [b1(case), b2(case), b3(case)]
    return results, {**rates, "fp32 afterwards": gemm_rate(shape, batch, torch.float32)}


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="S")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--original", type=Path, help="a checkout of github.com/TonyLianLong/CrossMAE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results, rates = measure(options.size, options.batch, options.repeats, options.original)
    if options.json:
        about = {"size": options.size, "batch": options.batch, "gflops_per_second": rates}
        print(json.dumps({**about, "results": [result.row() for result in results]}, indent=2))
    else:
        print(f"peer: {'the plain form' if options.original is None else options.original}")
        _print(results, rates, options.size, options.batch)
    return total_failed(results)


def _print(results: list[Measured], rates: dict[str, float], size: str, batch: int) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"ViT-{size}, batch {batch}, {device_name(torch.device('cpu'))}, {capability}")
    print("matrix products: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    for result in results:
        print(result.line())


if __name__ == "__main__":
    sys.exit(main())
