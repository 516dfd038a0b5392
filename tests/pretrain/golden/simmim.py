"""Numbers of SimMIM made by its authors' code: `python simmim.py SIMMIM AMT > simmim.json`.

SIMMIM is a clone of github.com/microsoft/SimMIM (d3e29bc), AMT one of github.com/guijiejie/AMT (dfe380e). Everything
is in float64; weights, images and masks are formulas, which tests/pretrain/test_simmim.py takes from here.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

SHAPE = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 0}
MASKED, THROWN = 10, 0  # of the 4 x 4 units of 2 x 2 patches
AMT_MASKED, AMT_THROWN = 5, 7  # which leaves a square of 6 x 6 patches, as that code wants it


def images() -> Tensor:
    return torch.sin(0.011 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)).view(2, 3, 64, 64)


def units() -> Tensor:
    """The order of the 16 units in two images: by the golden ratio's multiples."""
    image, unit = torch.meshgrid(torch.arange(2), torch.arange(16), indexing="ij")
    return ((0.6180339887498949 * (unit.double() + 1) + 0.37 * image) % 1).argsort(dim=1)


def flags(masked: int, thrown: int) -> Tensor:
    """1 where a patch is masked, -1 where it is thrown away, else 0: (2, 8, 8)."""
    flag = torch.zeros(2, 16, dtype=torch.int64)
    order = units()
    flag.scatter_(1, order[:, :masked], 1)
    flag.scatter_(1, order[:, masked : masked + thrown], -1)
    return flag.view(2, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)


def fill(model: nn.Module, fixed: tuple[str, ...] = ()) -> None:
    """Sines; norms' weights about 1; those that end in `fixed` are 1."""
    for rank, (name, parameter) in enumerate(sorted(model.named_parameters())):
        value = 0.05 * torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + 1.3 * rank)
        norm = parameter.ndim == 1 and name.endswith((".weight", "gamma_1", "gamma_2"))
        value = torch.ones_like(value) if fixed and name.endswith(fixed) else value + float(norm)
        parameter.data = value.view_as(parameter)


def load(root: Path) -> Any:
    """`models.simmim` and its neighbours of the clone at `root`."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "optimizer", "lr_scheduler")]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        sys.modules.setdefault("requests", SimpleNamespace(patch=None))  # type: ignore[arg-type]
        names = {"simmim": "models.simmim", "optimizer": "optimizer", "lr_scheduler": "lr_scheduler"}
        code = SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})
        code.lr_scheduler.CosineLRScheduler = cosine
        return code
    finally:
        sys.path.remove(str(root))


def cosine(optimizer: Any, t_mul: float = 1.0, **options: Any) -> CosineLRScheduler:
    """timm has another name for `t_mul` since."""
    return CosineLRScheduler(optimizer, cycle_mul=t_mul, **options)


def build(code: Any, **options: Any) -> nn.Module:
    encoder = code.simmim.VisionTransformerForSimMIM(
        **SHAPE, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=0.1,
        use_mean_pooling=False, **options,
    )  # fmt: skip
    model: nn.Module = code.simmim.SimMIM(encoder, encoder_stride=8).double()
    return model


def numbers(model: nn.Module, loss: Tensor) -> dict[str, float]:
    loss.backward()
    squares = {name: p.grad.square().sum() for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: square.sqrt().item() for name, square in sorted(squares.items())}
    return {"loss": loss.item(), "gradient": torch.stack(list(squares.values())).sum().sqrt().item(), **norms}


def throwing(model: Any) -> Tensor:
    """The loss that AMT describes, of its encoder's and decoder's output; its own `forward` stops with an error."""
    flag = flags(AMT_MASKED, AMT_THROWN)
    kept = (flag.flatten(1) + 1).bool()
    made = model.decoder(model.encoder(images(), flag))
    tiles = model.patchify(images())[kept].view(2, -1, 192)
    target = _tiled(tiles, made.shape[-1] // 8)
    mask = flag.flatten(1)[kept].view(2, made.shape[-2] // 8, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return ((target - made).abs() * mask[:, None]).sum() / (mask.sum() + 1e-5) / 3


def _tiled(tiles: Tensor, side: int) -> Tensor:
    rows = tiles.shape[1] // side
    return tiles.view(2, rows, side, 8, 8, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, rows * 8, side * 8)


def trajectory(code: Any) -> dict[str, Any]:
    """50 steps of AdamW with the authors' groups, clipping and schedule on the two images."""
    model = build(code, use_abs_pos_emb=False, use_shared_rel_pos_bias=True)
    fill(model)
    scheduler_config = SimpleNamespace(NAME="multistep", GAMMA=0.1, MULTISTEPS=[8], DECAY_EPOCHS=30)
    optimizer_config = SimpleNamespace(NAME="adamw", EPS=1e-8, BETAS=(0.9, 0.999), MOMENTUM=0.9)
    train = SimpleNamespace(
        EPOCHS=10, WARMUP_EPOCHS=2, BASE_LR=4e-3, WARMUP_LR=1e-5, MIN_LR=2e-5, WEIGHT_DECAY=0.05,
        OPTIMIZER=optimizer_config, LR_SCHEDULER=scheduler_config,
    )  # fmt: skip
    config = SimpleNamespace(TRAIN=train)
    logger = logging.getLogger("quiet")
    optimizer = code.optimizer.build_optimizer(config, model, logger, is_pretrain=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = sorted(names[id(parameter)] for parameter in optimizer.param_groups[1]["params"])
    rates = {"multistep": rates_of(code, config, optimizer)}
    scheduler_config.NAME = "cosine"
    rates["cosine"] = rates_of(code, config, optimizer)
    scheduler_config.NAME = "multistep"
    scheduler = code.lr_scheduler.build_scheduler(config, optimizer, 5)
    losses = []
    for step in range(50):
        loss = model(images(), flags(MASKED, THROWN))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step_update(step)
        losses.append(loss.item())
    return {"losses": losses, "spared": spared, "rates": rates}


def rates_of(code: Any, config: Any, optimizer: Any) -> list[float]:
    for group in optimizer.param_groups:
        group["lr"] = config.TRAIN.BASE_LR
        group.pop("initial_lr", None)
    scheduler = code.lr_scheduler.build_scheduler(config, optimizer, 5)
    rates = []
    for step in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step)
    for group in optimizer.param_groups:
        group["lr"] = config.TRAIN.BASE_LR
        group.pop("initial_lr", None)
    return rates


def main(simmim: Path, amt: Path) -> None:
    code = load(simmim)
    golden: dict[str, Any] = {}
    for name, options in {
        "relative": {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True},
        "absolute": {"use_abs_pos_emb": True},
    }.items():
        model = build(code, **options)
        fill(model)
        golden[name] = numbers(model, model(images(), flags(MASKED, THROWN)))
    golden.update(trajectory(code))
    amts = load(amt / "SimMIM-AMT")
    model = build(amts, use_abs_pos_emb=True)
    fill(model, fixed=("gamma_1",))  # which that code leaves out
    golden["throwing"] = numbers(model, throwing(model))
    attention = model.encoder.forward_test(images())[:, :, 0, 1:]
    golden["attention"] = attention.flatten().tolist()[::7]
    print(json.dumps(golden, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
