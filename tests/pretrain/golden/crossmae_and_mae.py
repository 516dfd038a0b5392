"""Golden numbers of CrossMAE and MAE from the authors' code; writes crossmae_and_mae.json beside this file.

    python tests/pretrain/golden/crossmae_and_mae.py PATH_OF_CROSSMAE

PATH_OF_CROSSMAE is a checkout of github.com/TonyLianLong/CrossMAE (ed0677a), which holds MAE's model as well. Weights,
images and noise are filled with sines and fractions of the golden ratio, so that nothing depends on a generator, in
float64. One thing is mended: without feature maps the authors' encoder calls a final norm that it never makes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "decoder_embed_dim": 32,
        "decoder_num_heads": 4, "decoder_depth": 2, "norm_pix_loss": True}  # fmt: skip
LARGE_IMAGE = {**TINY, "img_size": 448, "patch_size": 16, "depth": 1, "decoder_depth": 1}
MAPS = {"weight_fm": True, "use_input": True}
CROSS: dict[str, tuple[dict[str, Any], float, float]] = {  # options, mask, predict
    "quarter": ({**TINY, **MAPS}, 0.75, 0.25),
    "all_hidden": ({**TINY, **MAPS}, 0.75, 0.75),
    "raw_pixels": ({**TINY, **MAPS, "norm_pix_loss": False}, 0.75, 0.25),
    "no_input": ({**TINY, "weight_fm": True, "use_fm": [0, 2]}, 0.65, 0.4),
    "early_maps": ({**TINY, **MAPS, "use_fm": [0]}, 0.75, 0.25),
    "self_attention": ({**TINY, **MAPS, "self_attn": True}, 0.75, 0.5),
    "no_maps": (TINY, 0.75, 0.25),
    "image_448": ({**LARGE_IMAGE, **MAPS}, 0.75, 0.25),
}
MAES: dict[str, tuple[dict[str, Any], float]] = {
    "mae": (TINY, 0.75),
    "mae_raw_pixels": ({**TINY, "norm_pix_loss": False}, 0.6),
    "mae_448": (LARGE_IMAGE, 0.75),
}
SCHEDULE = SimpleNamespace(epochs=5, warmup_epochs=1.3, lr=2e-3, min_lr=1e-5)
STEPS, BATCH = 50, 4


def sines(*shape: int, phase: float = 0.0) -> Tensor:
    return torch.sin(0.011 * torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def noise(batch: int, patches: int, phase: float = 0.0) -> Tensor:
    image, patch_number = torch.meshgrid(torch.arange(batch), torch.arange(patches), indexing="ij")
    return (0.6180339887498949 * (patch_number.double() + 1) + 0.37 * image + phase) % 1


def filled(model: nn.Module) -> nn.Module:
    """Every weight a sine of its place, but for the position tables."""
    model = model.double()
    state = model.state_dict()
    for rank, name in enumerate(sorted(state)):
        if not name.endswith("pos_embed"):
            value = 0.05 * torch.sin(0.37 * torch.arange(state[name].numel(), dtype=torch.float64) + 1.3 * rank)
            state[name] = value.view_as(state[name]) + float(state[name].ndim == 1 and name.endswith(".weight"))
    model.load_state_dict(state)
    return model


@contextmanager
def drawing(value: Tensor) -> Iterator[None]:
    """Within, `torch.rand` gives `value`."""
    with patch("torch.rand", lambda *shape, **_: value.view(shape)):
        yield


def norms(model: nn.Module) -> dict[str, float]:
    return {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}


def case(model: nn.Module, side: int, patches: int, *ratios: float) -> dict[str, Any]:
    with drawing(noise(2, patches)):
        loss = model(sines(2, 3, side, side), *ratios)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.backward()
    return {"loss": loss.item(), "gradients": norms(model)}


def trajectory(model: nn.Module, adjust: Callable[..., float], *ratios: float) -> dict[str, Any]:
    """Losses, learning rates and final weights of 50 steps of AdamW, and which weights decay."""
    groups = param_groups_weight_decay(model, 0.05)
    optimizer = torch.optim.AdamW(groups, lr=SCHEDULE.lr, betas=(0.9, 0.95))
    names = {id(p): name for name, p in model.named_parameters()}
    losses, rates = [], []
    for step in range(STEPS):
        rates.append(adjust(optimizer, step * SCHEDULE.epochs / STEPS, SCHEDULE))
        with drawing(noise(BATCH, 16, 0.11 * step)):
            loss = model(sines(BATCH, 3, 32, 32, phase=0.7 * step), *ratios)
        loss = loss[0] if isinstance(loss, tuple) else loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "rates": rates,
        "decayed": [names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]],
        "weights": {name: p.abs().sum().item() for name, p in model.named_parameters()},
    }


def seeded(build: Callable[[], nn.Module]) -> dict[str, Any]:
    torch.manual_seed(0)
    return {name: value.abs().sum().item() for name, value in build().state_dict().items()}


def counts(models: Any, sizes: dict[str, str], **options: Any) -> dict[str, list[int]]:
    """Parameters, trainable ones, and entries of the state dictionary."""
    found = {}
    for size, name in sizes.items():
        with torch.device("meta"):
            model = getattr(models, name)(**options)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found[size] = [sum(p.numel() for p in model.parameters()), trainable, len(model.state_dict())]
    return found


def main(original: str) -> None:
    sys.path.insert(0, original)
    import models_cross
    import models_mae
    from util.lr_sched import adjust_learning_rate

    norm = partial(nn.LayerNorm, eps=1e-6)
    golden: dict[str, Any] = {}
    for name, (options, *ratios) in CROSS.items():
        model = models_cross.MaskedAutoencoderViT(**options, norm_layer=norm)
        if not options.get("weight_fm"):
            model.norm = norm(options["embed_dim"])
        golden[name] = case(filled(model), options["img_size"], model.patch_embed.num_patches, *ratios)
    for name, (options, mask) in MAES.items():
        model = models_mae.MaskedAutoencoderViT(**options, norm_layer=norm)
        golden[name] = case(filled(model), options["img_size"], model.patch_embed.num_patches, mask)
    cross = filled(models_cross.MaskedAutoencoderViT(**TINY, **MAPS, norm_layer=norm))
    golden["crossmae_trajectory"] = trajectory(cross, adjust_learning_rate, 0.75, 0.25)
    golden["mae_trajectory"] = trajectory(
        filled(models_mae.MaskedAutoencoderViT(**TINY, norm_layer=norm)), adjust_learning_rate, 0.75
    )
    names = {"S": "small_patch16", "B": "base_patch16", "L": "large_patch16", "H": "huge_patch14"}
    sizes = {size: f"mae_vit_{name}" for size, name in names.items()}
    golden["mae_counts"] = counts(models_mae, sizes, decoder_depth=8)
    golden["crossmae_counts"] = counts(models_cross, sizes, decoder_depth=12, **MAPS)
    golden["mae_seeded"] = seeded(partial(models_mae.MaskedAutoencoderViT, **TINY, norm_layer=norm))
    golden["crossmae_seeded"] = seeded(partial(models_cross.MaskedAutoencoderViT, **TINY, **MAPS, norm_layer=norm))
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
