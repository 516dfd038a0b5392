"""Makes finetune.json: what the authors' code for fine-tuning and probing gives.

    python -m tests.cls.golden.finetune ORIGINALS

ORIGINALS holds clones of facebookresearch/mae and guijiejie/AMT under those names. Their code is run as it is; put
back first is what current versions of torch and timm took away (`restore`), and timm 0.3's forward of a classifier:
features, then head. Nothing depends on a generator but what is meant to: weights are sines, images come from NumPy's
generator. The trajectory seeds all generators before each micro-batch as our loop does, so that drop path and mixup
draw alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from mimbench.engine.run.process import derived_seed, seed_all
from tests.backbones.golden.plain_vits import original, restore
from tests.backbones.golden.sine import filled

SIZES = {"S": (384, 12, 6, 16, 0.65), "B": (768, 12, 12, 16, 0.65), "L": (1024, 24, 16, 16, 0.75),
         "H": (1280, 32, 16, 14, 0.75)}  # fmt: skip
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 10}
SAVED = {"embed_dim": 128, "depth": 2, "num_heads": 2}  # heads as a file's shapes imply them
NORM = partial(nn.LayerNorm, eps=1e-6)
RUN = SimpleNamespace(epochs=2, warmup_epochs=0.5, lr=2e-2, min_lr=1e-6, accum_iter=2)
MICRO, STEPS, SEED = 8, 10, 3
PHOTOS = ((300, 200, 224), (97, 341, 224), (256, 256, 224), (500, 375, 224), (480, 640, 448), (64, 64, 64))
SIMMIM = {"epochs": 4, "warmup": 1, "steps": 5, "base": 5e-3, "start": 1e-6, "minimum": 1e-6, "decay": 0.65}


def photo(width: int, height: int) -> Image.Image:
    """An image of noise on a slope; the same from NumPy's generator everywhere."""
    noise = np.random.default_rng(width * 1000 + height).integers(0, 100, (height, width, 3))
    slope = np.arange(width)[None, :, None] * 155 // width
    return Image.fromarray((noise + slope).astype(np.uint8))


def fixed_batches() -> tuple[Tensor, Tensor]:
    """uint8 images (20, 8, 3, 32, 32) and labels (20, 8) of ten steps of two micro-batches."""
    generator = np.random.default_rng(0)
    count = STEPS * RUN.accum_iter
    images = generator.integers(0, 256, (count, MICRO, 3, 32, 32), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(0, 10, (count, MICRO)))


def classifier(vit: Any, pooled: bool, drop_path: float = 0.0, **sizes: Any) -> nn.Module:
    """The authors' classifier; weights are the caller's."""
    model = vit.VisionTransformer(
        global_pool=pooled, qkv_bias=True, norm_layer=NORM, drop_path_rate=drop_path, **{**TINY, **sizes}
    )
    model.forward = lambda images: model.head(model.forward_features(images))  # timm 0.3's
    return model


def with_sines(model: nn.Module) -> nn.Module:
    state = filled({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(state)
    return model


def digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def told(model: nn.Module, found: list[dict[str, Any]]) -> list[list[Any]]:
    """Of each parameter group: layer-decay scale, weight decay, how many parameters, a digest of their names."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = [[names[id(parameter)] for parameter in group["params"]] for group in found]
    return [
        [group["lr_scale"], group["weight_decay"], len(inside), digest(inside)]
        for group, inside in zip(found, members, strict=True)
    ]


def groups(root: Path) -> dict[str, Any]:
    """Every group of each size."""
    vit, lrd = original(root / "mae", "models_vit"), original(root / "mae", "util.lr_decay")
    found = {}
    for size, (width, depth, heads, patch_side, decay) in SIZES.items():
        with torch.device("meta"):
            shape = {"img_size": 224, "patch_size": patch_side, "embed_dim": width, "depth": depth, "num_heads": heads}
            model = classifier(vit, True, **shape, num_classes=1000)  # type: ignore[arg-type]
        spared = {"pos_embed", "cls_token", "dist_token"}  # timm 0.3's no_weight_decay()
        found[size] = told(model, lrd.param_groups_lrd(model, 0.05, spared, decay))
    return found


def simmim_groups(root: Path) -> list[list[Any]]:
    """The same of ViT-B with a class token by SimMIM's optimizer.py."""
    vit, optimizer = original(root / "mae", "models_vit"), original(root / "AMT" / "SimMIM-AMT", "optimizer")
    with torch.device("meta"):
        model = classifier(vit, False, img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12)
    layer = partial(optimizer.get_vit_layer, num_layers=14)
    scales = [SIMMIM["decay"] ** power for power in reversed(range(14))]
    log = SimpleNamespace(info=lambda text: None)
    found = optimizer.get_finetune_param_groups(model, log, 1.0, 0.05, layer, scales, {"pos_embed", "cls_token"})
    return told(model, found)


def rates(root: Path) -> list[list[float]]:
    """Of each optimiser step, the learning rate of a group of scale 1 and of one of scale .65 ** 4."""
    sched = original(root / "mae", "util.lr_sched")
    weight = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW(
        [{"params": [weight[0]], "lr_scale": 1.0}, {"params": [weight[1]], "lr_scale": 0.65**4}]
    )
    found, loader = [], STEPS * RUN.accum_iter // RUN.epochs
    for epoch in range(RUN.epochs):
        for step in range(0, loader, RUN.accum_iter):
            sched.adjust_learning_rate(optimizer, step / loader + epoch, RUN)
            found.append([group["lr"] for group in optimizer.param_groups])
    return found


def simmim_rates(root: Path, accumulate: int) -> list[list[float]]:
    """The same by SimMIM's scheduler, of layers 13 and 0 of ViT-B; timm 0.5's, which left lr_scale alone."""
    build = original(root / "AMT" / "SimMIM-AMT", "lr_scheduler").build_scheduler
    train = SimpleNamespace(EPOCHS=SIMMIM["epochs"], WARMUP_EPOCHS=SIMMIM["warmup"], MIN_LR=SIMMIM["minimum"],
                            WARMUP_LR=SIMMIM["start"],
                            LR_SCHEDULER=SimpleNamespace(NAME="cosine", DECAY_EPOCHS=1, MULTISTEPS=[]))  # fmt: skip
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    scales = (1.0, SIMMIM["decay"] ** 13)
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "lr": SIMMIM["base"] * scale} for weight, scale in zip(weights, scales, strict=True)]
    )
    loader = int(SIMMIM["steps"]) * accumulate
    scheduler = build(SimpleNamespace(TRAIN=train), optimizer, loader)
    found = []
    for epoch in range(int(SIMMIM["epochs"])):
        for step in range(loader):
            if (step + 1) % accumulate == 0:
                found.append([group["lr"] for group in optimizer.param_groups])
                scheduler.step_update(epoch * loader + step)
    return found


def mixed() -> dict[str, Any]:
    """Targets and pixels of a batch by timm's Mixup as MAE calls it, after three seeds."""
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_minmax=None, prob=1.0, switch_prob=0.5, mode="batch",
                label_smoothing=0.1, num_classes=10)  # fmt: skip
    images, labels = (batch[0] for batch in fixed_batches())
    found = {}
    for seed in range(3):
        np.random.seed(seed)
        floats, targets = mix(images.float() / 255, labels)
        found[str(seed)] = {
            "targets": [[float(f"{value:.8g}") for value in row] for row in targets[:3].tolist()],
            "pixels": [float(f"{value:.7g}") for value in floats[:, 1, 16, ::8].flatten().tolist()],
        }
    return found


def crops(root: Path) -> dict[str, str]:
    """A digest of the pixels of MAE's evaluation crop, before they become floats."""
    build = original(root / "mae", "util.datasets").build_transform
    found = {}
    for width, height, side in PHOTOS:
        resize, middle = build(False, SimpleNamespace(input_size=side)).transforms[:2]
        pixels = np.asarray(middle(resize(photo(width, height))))
        found[f"{width}x{height} to {side}"] = hashlib.sha256(pixels.tobytes()).hexdigest()
    return found


def train_crops(root: Path) -> dict[str, str]:
    """A digest of the pixels of MAE's training crops (crop, flip, RandAugment), of a photograph each by its seed.

    With Pillow 12, as all that was published; Pillow 13 resizes in another order (engine/data/pillow.py).
    """
    options = SimpleNamespace(input_size=64, color_jitter=None, aa="rand-m9-mstd0.5-inc1", reprob=0.25, remode="pixel",
                              recount=1)  # fmt: skip
    steps = original(root / "mae", "util.datasets").build_transform(True, options).transforms[:3]
    found = {}
    for seed, (width, height, _) in enumerate(PHOTOS):
        seed_all(seed)
        image = photo(width, height)
        for step in steps:
            image = step(image)
        found[f"{width}x{height}"] = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    return found


def logits(root: Path) -> dict[str, list[float]]:
    """Of two images by MAE's classifier with either head, in float64."""
    vit = original(root / "mae", "models_vit")
    images = torch.sin(0.011 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).view(2, 3, 32, 32)
    found = {}
    for name, pooled in (("avg", True), ("cls", False)):
        model = with_sines(classifier(vit, pooled, **SAVED).double()).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            found[name] = model(images).flatten().tolist()
    return found


def probe() -> dict[str, Any]:
    """The head of MAE's main_linprobe.py in training and after it."""
    linear = nn.Linear(6, 4)
    head = nn.Sequential(nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear).double()
    weight = 0.3 * torch.sin(torch.arange(24.0, dtype=torch.float64)).view(4, 6)
    linear.load_state_dict({"weight": weight, "bias": torch.arange(4.0, dtype=torch.float64)})
    features = torch.cos(torch.arange(60.0, dtype=torch.float64) ** 1.5).view(10, 6)
    with torch.no_grad():
        train = [head.train()(part).flatten().tolist() for part in features.split(5)]
        return {"train": train, "eval": head.eval()(features).flatten().tolist()}


def trajectory(root: Path) -> dict[str, Any]:
    """Ten optimiser steps of MAE's train_one_epoch on the CPU: every loss, and norms of the weights at the end."""
    six = types.ModuleType("torch._six")
    six.inf = math.inf  # type: ignore[attr-defined]
    sys.modules["torch._six"] = six
    vit, lrd = original(root / "mae", "models_vit"), original(root / "mae", "util.lr_decay")
    loop = original(root / "mae", "engine_finetune")
    scaler = original(root / "mae", "util.misc").NativeScalerWithGradNormCount()
    model = with_sines(classifier(vit, True, drop_path=0.2))
    optimizer = torch.optim.AdamW(lrd.param_groups_lrd(model, 0.05, {"pos_embed", "cls_token"}, 0.65), lr=RUN.lr)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images, labels = fixed_batches()
    per_epoch = len(images) // RUN.epochs
    losses: list[float] = []

    class Loader:
        def __init__(self, epoch: int) -> None:
            self.places = range(epoch * per_epoch, (epoch + 1) * per_epoch)

        def __len__(self) -> int:
            return per_epoch

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for place in self.places:
                step, micro = divmod(place, RUN.accum_iter)
                seed_all(derived_seed(SEED, 0, step, micro))
                yield (images[place] / 255 - mean) / std, labels[place]

    class Criterion(SoftTargetCrossEntropy):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            loss = super().forward(x, target)
            losses.append(loss.item())
            return loss

    with patch.object(torch.cuda, "synchronize"):
        for epoch in range(RUN.epochs):
            loop.train_one_epoch(
                model, Criterion(), Loader(epoch), optimizer, torch.device("cpu"), epoch, scaler, None, mix, args=RUN
            )
    norms = {name: value.double().norm().item() for name, value in sorted(model.state_dict().items())}
    return {"losses": losses, "norms": norms}


if __name__ == "__main__":
    restore()
    place = Path(sys.argv[1])
    whole = {
        "groups": groups(place),
        "simmim_groups": simmim_groups(place),
        "rates": rates(place),
        "simmim": simmim_rates(place, 1),
        "simmim_accumulated": simmim_rates(place, 2),
        "mixed": mixed(),
        "crops": crops(place),
        "train_crops": train_crops(place),
        "logits": logits(place),
        "probe": probe(),
        "trajectory": trajectory(place),
    }
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(whole, separators=(",", ":")) + "\n")
    print(target, target.stat().st_size)
