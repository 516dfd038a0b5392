"""A pretraining run, from its config to `encoder.safetensors`.

    run(config, RunDir(path))       # or, on the command line: mimbench run pretrain/crossmae_handwritten

Reads the training images of `config.data` and, for the loss and the picture at the end, some validation images.
Writes what every training writes (engine/train.py), the encoder alone with what it is (`encoder.safetensors`, the same
bytes for the same weights), and `plots/reconstructions.png`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from backbones.checkpoint import EncoderInfo, save_encoder
from engine.data import Batches
from engine.datasets import locate
from engine.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, RandomCrops
from engine.optim import adamw, parameter_groups
from engine.process import device_name, rank_and_world, setup_process
from engine.result import Outcome
from engine.rundir import RunDir
from engine.schedule import warmup_cosine
from engine.train import Trained, Training, train
from pretrain.config import Pretrain
from pretrain.crossmae import CrossMAE
from pretrain.reconstruct import fixed_noise, reconstruct, save_picture, spread, validation_loss

log = logging.getLogger(__name__)

VALIDATION = 1024  # images the final loss is measured on
SHOWN = 10  # of them in the picture


class Step(nn.Module):
    """What the training loop calls: uint8 images to the loss, with a mask drawn from torch's generator."""

    def __init__(self, method: CrossMAE) -> None:
        super().__init__()
        self.method = method
        self.patches = method.shape.grid**2
        self.mean: Tensor
        self.std: Tensor
        # kept on the device: a tensor made from numbers would have to wait for it at every step
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The loss of uint8 images (B, 3, H, W); their labels are not looked at."""
        images = batch[0].float().sub_(self.mean).div_(self.std)
        return {"loss": self.method(images, torch.rand(len(images), self.patches, device=images.device))}


def run(config: Pretrain, run: RunDir) -> Outcome:
    """Pretrain as `config` says, or carry on with it; what is left is described above.

    Raises:
        ValueError: if the data or the batch cannot be used, or the loss is not a number.
        OSError: if a file cannot be read or written.
    """
    device = setup_process(config.compute, config.seed)
    root = locate(config.data)
    batches = training_batches(config, ImageFolder(root, "train"))
    unseen = _unseen(root)
    method = CrossMAE(config.encoder, config.method)
    images = spread(unseen, VALIDATION, config.encoder.image)
    trained = train(run, training(config, Step(method), batches, images))
    if rank_and_world()[0] == 0:
        _save(config, run, method)
        _draw(config, run, method, images[:: max(1, len(images) // SHOWN)][:SHOWN].to(device), unseen.split)
    return _outcome(config, trained, len(batches), device)


def training_batches(config: Pretrain, folder: ImageFolder) -> Batches:
    """Random crops of `folder` in micro-batches for this process.

    Raises:
        ValueError: if the batch cannot be shared out, or there are too few images for it.
    """
    share = rank_and_world()[1] * config.compute.accumulate
    if config.batch % share:
        raise ValueError(f"batch={config.batch} is not a multiple of {share}, processes times compute.accumulate")
    crops = RandomCrops(folder, config.encoder.image, scale=(config.smallest_crop, 1.0), flip=config.flip)
    return Batches(
        crops,
        config.batch // share,
        config.seed,
        accumulate=config.compute.accumulate,
        workers=config.compute.workers,
    )


def training(config: Pretrain, step: Step, batches: Batches, validation: Tensor) -> Training:
    """The training that `config` describes, measured at its end on uint8 images `validation`."""
    groups = parameter_groups(step.named_parameters(), config.weight_decay, _no_decay)

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = step.mean.device
        return {"val_loss": validation_loss(step.method, validation.to(device), config.seed, batches.batch)}

    return Training(
        model=step,
        optimizer=adamw(groups, config.learning_rate, config.betas),
        batches=batches,
        steps=config.epochs * len(batches) // config.compute.accumulate,
        learning_rate=_schedule(config, config.compute.accumulate / len(batches)),
        compute=config.compute,
        seed=config.seed,
        evaluate=evaluate,
    )


def _schedule(config: Pretrain, epochs_per_step: float) -> Callable[[int], float]:
    def rate(step: int) -> float:
        now = step * epochs_per_step
        return warmup_cosine(now, config.learning_rate, config.min_lr, config.warmup_epochs, config.epochs)

    return rate


def _no_decay(name: str, parameter: Parameter) -> bool:
    """Biases and norms. The class token, the mask token and the mixing weights do decay, as in the original."""
    return parameter.ndim <= 1 or name.endswith(".bias")


def _unseen(root: Path) -> ImageFolder:
    """Validation images; training images where there are no others."""
    try:
        return ImageFolder(root, "val")
    except FileNotFoundError:
        log.warning("%s has no validation images: the final loss and the picture are of training images", root)
        return ImageFolder(root, "train")


def _save(config: Pretrain, run: RunDir, method: CrossMAE) -> None:
    about = run.read_about()
    info = EncoderInfo(
        family=config.method.kind,
        vit=config.encoder,
        final_norm=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        recipe=about["recipe"],
        identity=about["identity"],
    )
    save_encoder(run.encoder, method.state_dict(), info)


def _draw(config: Pretrain, run: RunDir, method: CrossMAE, images: Tensor, split: str) -> None:
    pictures = reconstruct(method, images, fixed_noise(images, method, config.seed))
    colours = "; mean and contrast of each hidden patch taken from the image" if config.method.norm_pix else ""
    caption = f"{split} images, {config.method.mask:.0%} of the patches hidden{colours}"
    save_picture(run.plots / "reconstructions.png", pictures, caption)


def _outcome(config: Pretrain, trained: Trained, epoch: int, device: torch.device) -> Outcome:
    facts: dict[str, Any] = {
        "method": config.method.kind,
        "epochs": config.epochs,
        "steps": config.epochs * epoch // config.compute.accumulate,
        "batch": config.batch,
        "learning_rate": config.learning_rate,
        "image": config.encoder.image,
        "patch": config.encoder.patch,
        "mask": config.method.mask,
        "predict": config.method.predict,
        "interpolation": "bicubic",
        "seed": config.seed,
    }
    return Outcome(
        metrics={"loss": trained.metrics["val_loss"]},
        facts=facts,
        images_per_second=trained.images_per_second,
        peak_memory=trained.peak_memory,
        device=device_name(device),
    )
