"""A CrossMAE training step against its plain form, and against MAE's (B1, B2, B3).

    python benchmarks/crossmae_step.py [--size S|B] [--batch 16] [--repeats 5] [--json]

    B1  the step in fp32, forward and backward, against the plain form: embed every patch and then gather, boolean
        selection, patchify everything, stack the maps on the last axis. Loss equal to 1e-6, gradients to 1e-5.
    B2  the step as it is run (precision=auto, fused AdamW) against the plain form in fp32 with torch's default AdamW
        and a gradient norm nobody reads. Loss equal to 2e-2. Its floor assumes bf16 in hardware.
    B3  CrossMAE (predict .25, 12 decoder blocks) against MAE (8 decoder blocks), both fp32, forward and backward.
        For ViT-B the steps are 38.7 and 58.8 GFLOP an image, counted.

Sides take turns and the least time of each counts. The machine's matrix-product rate is measured in the same run.
Ends with status 1 if a ratio is below its floor. Size T is a toy to try the script with; it has no floors.

The plain form follows the papers' description step by step and is what tests compare the model with, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.config import SIZES, ViT
from backbones.positions import sincos_2d
from backbones.vit import LayerNorm, Trunk
from engine.config import Compute
from engine.optim import adamw, parameter_groups
from engine.process import autocast_dtype, device_name
from pretrain.config import CrossMAE as Config
from pretrain.crossmae import CrossMAE, pixels, standardised
from pretrain.masking import mask_patches

BETAS, LR, DECAY = (0.9, 0.95), 1e-4, 0.05
SHAPES = {"T": ViT(64, 2, 2, patch=8, image=32), "S": SIZES["S"], "B": SIZES["B"]}
DECODERS = {"T": Config(depth=2, width=32, heads=2), "S": Config(width=256, heads=8), "B": Config()}
# CrossMAE and MAE, an image, forward and backward, as counted in the authors' code. Ours embed fewer patches (-0.9 %
# at most), and attention is counted here without the recomputation that a fused kernel does (-0.6 %).
GFLOPS = {"B": (38.7, 58.8)}


@dataclass(frozen=True)
class Target:
    """Ratios to reach: below `floor` the benchmark fails, `limit` is what physics allows."""

    floor: float
    aim: float
    limit: float


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

    def target(self, name: str) -> Target | None:
        """What benchmark `name` has to reach at this size."""
        return TARGETS[name].get(self.size)


@dataclass(frozen=True)
class Measured:
    """One benchmark's outcome; seconds are per step."""

    name: str
    ours: float
    peer: float
    ratio: float
    target: Target | None
    note: str = ""

    @property
    def failed(self) -> bool:
        """Below the floor, where there is one."""
        return self.target is not None and self.ratio < self.target.floor


# ------------------------------------------------------------------------------------------------------- plain form


def plain_loss(model: CrossMAE, images: Tensor, noise: Tensor) -> Tensor:
    """CrossMAE's loss in its plain form, with the weights of `model`."""
    config, length = model.config, model.shape.grid**2
    shown, skipped = int(length * (1 - config.mask)), int(length * (config.mask - config.predict))
    tokens = model.patch_embed.proj(images).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    order = torch.argsort(noise, dim=1)
    restore = torch.argsort(order, dim=1)
    tokens = torch.gather(tokens, 1, order[:, :shown, None].repeat(1, 1, tokens.shape[2]))
    mask = torch.ones_like(noise)
    mask[:, : shown + skipped] = 0
    mask = torch.gather(mask, 1, restore).bool()
    prediction = _plain_decoder(model, _plain_maps(model, tokens), mask)
    target = plain_patchify(images, model.patch).masked_select(mask[..., None]).view_as(prediction)
    if config.norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    return ((prediction - target) ** 2).mean()


def _plain_maps(model: CrossMAE, tokens: Tensor) -> list[Tensor]:
    tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    maps = [tokens]
    for block in model.blocks:
        maps.append(block(maps[-1]))
    return [maps[index] for index in model.maps]


def _plain_decoder(model: CrossMAE, maps: list[Tensor], mask: Tensor) -> Tensor:
    mixed = model.wfm.linear(torch.stack(maps, dim=-1))
    positions = model.decoder_pos_embed[:, 1:].masked_select(mask[..., None])
    queries = model.mask_token + positions.view(len(mask), -1, model.config.width)
    for index, (block, norm) in enumerate(zip(model.decoder_blocks, model.dec_norms, strict=True)):
        queries = block(queries, norm(mixed[..., index]))
    prediction: Tensor = model.decoder_pred(model.decoder_norm(queries))
    return prediction


def plain_patchify(images: Tensor, patch: int) -> Tensor:
    """Every patch of square images (B, 3, S, S) as (B, N, P), P in the order row, column, colour."""
    batch, side = len(images), images.shape[2] // patch
    cut = images.reshape(batch, 3, side, patch, side, patch)
    return torch.einsum("nchpwq->nhwpqc", cut).reshape(batch, side * side, -1)


# --------------------------------------------------------------------------------------------------------------- MAE


class MAE(Trunk):
    """Masked autoencoder (He et al. 2022), to time beside CrossMAE: the same trunk, a decoder of 8 self-attention
    blocks on every token, the loss on hidden patches."""

    def __init__(self, shape: ViT, width: int, heads: int, depth: int = 8) -> None:
        super().__init__(shape)
        self.norm = LayerNorm(shape.width)
        self.decoder_embed = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(width, (shape.grid, shape.grid)), requires_grad=False)
        blocks = (Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
        self.decoder_blocks = nn.ModuleList(blocks)
        self.decoder_norm = LayerNorm(width)
        self.decoder_pred = nn.Linear(width, 3 * shape.patch**2)
        self.initialise(self.mask_token)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss on every hidden patch, mask .75."""
        shown, hidden = mask_patches(noise, 0.75, 0.75)
        tokens = self.decoder_embed(self.norm(self.forward_tokens(images, shown)[-1]))
        every = self.mask_token.to(tokens.dtype).repeat(len(tokens), noise.shape[1], 1)
        every = every.scatter(1, shown[..., None].expand(-1, -1, tokens.shape[2]), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], every], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        prediction = self.decoder_pred(self.decoder_norm(tokens))[:, 1:]
        hidden_prediction = prediction.gather(1, hidden[..., None].expand(-1, -1, prediction.shape[2]))
        return F.mse_loss(hidden_prediction, standardised(pixels(images, hidden, self.patch)))


# ------------------------------------------------------------------------------------------------------- measurement


def take_turns(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least seconds of each, after a warm-up of each."""
    best = [float("inf"), float("inf")]
    for turn in range(repeats + 1):
        for side, call in enumerate((ours, peer)):
            start = time.perf_counter()
            call()
            if turn:
                best[side] = min(best[side], time.perf_counter() - start)
    return best[0], best[1]


def gemm_rate(shape: ViT, batch: int, dtype: torch.dtype) -> float:
    """GFLOP/s of the product that a ViT's MLP is made of."""
    rows = batch * (shape.grid**2 // 4 + 1)
    a, b = torch.randn(rows, shape.width, dtype=dtype), torch.randn(shape.width, 4 * shape.width, dtype=dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(20))
    return 2 * rows * shape.width * 4 * shape.width / best / 1e9


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of `loss`, taken out of `model`."""
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of `a` from `b`, by the norm of `b`."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


def check_equal(model: CrossMAE, images: Tensor, noise: Tensor) -> tuple[float, float]:
    """Relative difference of loss and of the worst gradient between the model and its plain form."""
    ours, plain = model(images, noise), plain_loss(model, images, noise)
    loss = relative(ours.detach(), plain.detach())
    ours_by_name, plain_by_name = gradients(model, ours), gradients(model, plain)
    worst = max(relative(ours_by_name[name], plain_by_name[name]) for name in plain_by_name)
    assert loss <= 1e-6, f"losses differ by {loss:.1e}"
    assert worst <= 1e-5, f"gradients differ by {worst:.1e}"
    return loss, worst


def b1(case: Case) -> Measured:
    """Forward and backward in fp32."""
    model, images, noise = case.model, case.images, case.noise
    loss, worst = check_equal(model, images, noise)

    def step(compute_loss: Callable[[], Tensor]) -> None:
        compute_loss().backward()
        model.zero_grad(set_to_none=True)

    ours, peer = take_turns(
        lambda: step(lambda: model(images, noise)), lambda: step(lambda: plain_loss(model, images, noise)), case.repeats
    )
    return Measured(
        "B1", ours, peer, peer / ours, case.target("B1"), f"loss differs by {loss:.0e}, gradients by {worst:.0e}"
    )


def b2(case: Case) -> Measured:
    """The whole optimiser step, each side with weights of its own."""
    model, images, noise = case.model, case.images, case.noise
    dtype = autocast_dtype(Compute(), images.device)
    fast, slow = copy.deepcopy(model), copy.deepcopy(model)
    fast_groups, slow_groups = (
        parameter_groups(side.named_parameters(), DECAY, lambda name, p: p.ndim <= 1) for side in (fast, slow)
    )
    fused, default = adamw(fast_groups, LR, BETAS), torch.optim.AdamW(slow_groups, lr=LR, betas=BETAS)

    def ours() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            loss = fast(images, noise)
        loss.backward()
        fused.step()
        fused.zero_grad(set_to_none=True)
        return loss.detach()

    def peer() -> Tensor:
        loss = plain_loss(slow, images, noise)
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
    return Measured("B2", least_ours, least_peer, least_peer / least_ours, target, note)


def b3(case: Case) -> Measured:
    """CrossMAE's step against MAE's, and what both compute."""
    model = case.model
    mae = MAE(model.shape, model.config.width, model.config.heads)
    counted = tuple(gflops(side, model.shape) for side in (model, mae))
    for count, published in zip(counted, GFLOPS.get(case.size, counted), strict=True):
        assert abs(count - published) < 0.015 * published, f"{count:.1f} GFLOP an image where {published} is known"

    def step(side: nn.Module) -> None:
        side(case.images, case.noise).backward()
        side.zero_grad(set_to_none=True)

    ours, peer = take_turns(lambda: step(model), lambda: step(mae), case.repeats)
    note = f"{counted[0]:.3g} and {counted[1]:.3g} GFLOP an image, {counted[1] / counted[0]:.2f} by count"
    return Measured("B3", ours, peer, peer / ours, case.target("B3"), note)


def gflops(model: nn.Module, shape: ViT) -> float:
    """GFLOP of forward and backward for one image, counted without computing anything."""
    ghost = copy.deepcopy(model).to("meta")
    images = torch.zeros(1, 3, shape.image, shape.image, device="meta")
    with FlopCounterMode(display=False) as counter:
        ghost(images, torch.zeros(1, shape.grid**2, device="meta")).backward()
    return counter.get_total_flops() / 1e9


def measure(size: str, batch: int, repeats: int) -> tuple[list[Measured], dict[str, float]]:
    """All three benchmarks, and the matrix-product rates (GFLOP/s) before and after them."""
    torch.manual_seed(0)
    shape = SHAPES[size]
    model = CrossMAE(shape, replace(DECODERS[size], predict=0.25))
    images, noise = torch.randn(batch, 3, shape.image, shape.image), torch.rand(batch, shape.grid**2)
    case = Case(size, model, images, noise, repeats)
    rates = {"fp32": gemm_rate(shape, batch, torch.float32), "bf16": gemm_rate(shape, batch, torch.bfloat16)}
    results = [b1(case), b2(case), b3(case)]
    return results, {**rates, "fp32 afterwards": gemm_rate(shape, batch, torch.float32)}


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="S")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results, rates = measure(options.size, options.batch, options.repeats)
    if options.json:
        about = {"size": options.size, "batch": options.batch, "gflops_per_second": rates}
        print(json.dumps({**about, "results": [{**asdict(r), "failed": r.failed} for r in results]}, indent=2))
    else:
        _print(results, rates, options.size, options.batch)
    return int(any(result.failed for result in results))


def _print(results: list[Measured], rates: dict[str, float], size: str, batch: int) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"ViT-{size}, batch {batch}, {device_name(torch.device('cpu'))}, {capability}")
    print("matrix products: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    for result in results:
        print(f"{result.name}  ours {result.ours:.4f} s  peer {result.peer:.4f} s  ratio {result.ratio:.2f}", end="")
        if target := result.target:
            verdict = "BELOW THE FLOOR" if result.failed else "ok"
            print(f"  (floor {target.floor}, aim {target.aim}, limit {target.limit}: {verdict})", end="")
        print(f"  {result.note}")


if __name__ == "__main__":
    sys.exit(main())
