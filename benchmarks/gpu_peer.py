"""CrossMAE's optimiser step against the authors', in the same run; a part of benchmarks/gpu.py.

Both compute in bf16 on the device, from the same weights. The authors' side uses torch's default AdamW, as their code
does. Without a checkout of theirs, their step is the one written out in benchmarks/crossmae_plain.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from crossmae_plain import authors_loss, authors_model, plain_loss
from crossmae_step import masked
from gpu_rates import peak, rate
from torch import Tensor, nn

from mimbench.engine.training.optim import adamw
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.methods.crossmae import CrossMAE
from mimbench.pretrain.run import build_step, decay_groups

NEAR = 0.02  # relative difference of the losses in bf16


def peer(device: torch.device, config: Pretrain, seconds: float, original: Path | None) -> Iterator[dict[str, Any]]:
    """Yield images per second and the peak of both sides, one after the other."""
    torch.manual_seed(0)
    model = build_step(config).method
    assert isinstance(model, CrossMAE)
    side = config.encoder.image
    images = torch.randn(config.batch, 3, side, side, device=device)
    noise = torch.rand(config.batch, config.encoder.grid**2, device=device)
    predict = 0.25

    def ours(model: CrossMAE) -> Tensor:
        return model(images, masked(noise, model.shape, predict))

    line: dict[str, Any] = {"peer": "the authors' code" if original else "the authors' step, written out"}
    losses = []
    for name in ("ours", "peer"):
        own = copy.deepcopy(model).to(device)
        if name == "ours":
            trained, loss = own, partial(ours, own)
            optimizer: torch.optim.Optimizer = adamw(decay_groups(own, config), 1e-4, config.betas)
        else:
            trained = own if original is None else authors_model(original, own).to(device)
            of = partial(plain_loss, own) if original is None else partial(authors_loss, trained)
            loss = partial(of, images, noise)
            optimizer = torch.optim.AdamW(trained.parameters(), 1e-4, config.betas)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            losses.append(float(loss()))
        peak(device)
        line[f"{name}_images_per_second"] = config.batch * rate(step_of(trained, loss, optimizer), seconds, device)
        line[f"{name}_peak_gib"] = peak(device)
        del own, trained, loss, optimizer
    assert abs(losses[0] / losses[1] - 1) < NEAR, losses
    yield {**line, "ratio": line["ours_images_per_second"] / line["peer_images_per_second"]}


def step_of(model: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return the function that takes an optimiser step."""
    device = next(model.parameters()).device

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            found = loss()
        found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
