"""A pretraining run, from its config to `encoder.safetensors`.

    run(config, RunDir(path))       # or, on the command line: mimbench run pretrain/crossmae_handwritten

Runs any method with any masking (pretrain/methods/table.py). Reads the training images of `config.data` and, for the
loss and the picture, some validation images. Writes the files of every training (engine/training/train.py), the encoder
with its description (`encoder.safetensors`, the same bytes for the same weights), `plots/reconstructions.png` and, if
requested, all weights under the authors' names (`full_export`: `model.pth`) and encoders of intermediate epochs
(`keep_encoder_every`: `encoders/epoch-0100.safetensors`, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.engine.data.batches import Batches
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, RandomCrops
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.precision import evaluating_in
from mimbench.engine.run.process import device_name, rank_and_world, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.compiling import blocks_of, compile_parts
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.schedule import warmup_cosine, warmup_drops, whole_cosine
from mimbench.engine.training.sharding import whole
from mimbench.engine.training.train import Trained, Training, train
from mimbench.pretrain.config import AttentionMasking, MaskAlignConfig, Pretrain
from mimbench.pretrain.masking.attention_guide import AttentionGuide
from mimbench.pretrain.methods.method import Method
from mimbench.pretrain.methods.table import build_masking, build_method
from mimbench.pretrain.monitor import Monitor
from mimbench.pretrain.reconstruct import fixed_noise, picture_rows, save_picture, spread, validation_loss
from mimbench.pretrain.step import Step

log = logging.getLogger(__name__)

VALIDATION = 1024  # images for the final loss
SHOWN = 10  # of them in the picture


def run(config: Pretrain, run: RunDir) -> Outcome:
    """Run or resume the pretraining `config`, and write the files listed above.

    Raises:
        ValueError: if the data, the masking or the batch cannot be used, or the loss is not finite.
        OSError: if a file cannot be read or written.
    """
    device = setup_process(config.compute, config.seed)
    root = locate(config.data)
    step = build_step(config)
    folder = ImageFolder(root, "train", decoder=config.jpeg_decoder)
    guide = AttentionGuide(config, run, step, folder) if config.masking.needs == "maps" else None
    batches = training_batches(config, folder, guide)
    unseen = _unseen(root)
    images = spread(unseen, VALIDATION, config.encoder.image)
    shown = images[:: max(1, len(images) // SHOWN)][:SHOWN]
    prepared = training(config, step, batches, images, guide, Monitor(config, step, folder, unseen))
    prepared = replace(prepared, before_step=_keeping(config, run, step, batches, prepared.before_step))
    trained = train(run, replace(prepared, draw=lambda: _draw(config, run, step, shown, guide, unseen.split)))
    if rank_and_world()[0] == 0:
        _save(config, run, step, run.encoder)
        if config.full_export:
            state = {"model": {name: value.cpu() for name, value in step.method.state_dict().items()}}
            write_with(run.path / "model.pth", lambda temporary: torch.save(state, temporary))
    outcome = _outcome(config, trained, len(batches), device)
    outcome.facts |= {"train_images": len(folder)} | folder.facts() | batches.facts()
    return outcome


def build_step(config: Pretrain) -> Step:
    """Return the method and the masking of `config`, with weights drawn from torch's generator.

    Raises:
        ValueError: if the masking leaves no patch to see, or none to predict.
    """
    masking = build_masking(config.masking, config.encoder, config.epochs)
    method = build_method(config.method, config.encoder, config.checkpoint)
    for module in method.modules():
        if hasattr(module, "recompute"):
            setattr(module, "recompute", config.recompute)  # noqa: B010 (mypy infers a tensor)
    if config.compile == "blocks":
        compile_parts(blocks_of(method))
    elif config.compile:
        method.compile(dynamic=False)
    return Step(method, masking)


def training_batches(config: Pretrain, folder: ImageFolder, guide: AttentionGuide | None = None) -> Batches:
    """Return random crops of `folder` in micro-batches for this process; with a guide they include patch weights.

    Raises:
        ValueError: if the batch cannot be divided among the processes, or there are too few images.
    """
    share = rank_and_world()[1] * config.compute.accumulate
    if config.batch % share:
        raise ValueError(f"batch={config.batch} must be a multiple of {share}: processes x compute.accumulate")
    side, noise = config.encoder.image, config.encoder.grid**2
    scale = (config.smallest_crop, 1.0)
    crops = RandomCrops(folder, side, scale=scale, flip=config.flip, noise=noise, resizing=config.resizing)
    return Batches(
        crops,
        config.batch // share,
        config.seed,
        accumulate=config.compute.accumulate,
        workers=config.compute.workers,
        prepare=guide.weigh if guide else None,
        skip=config.skip,
    )


def training(
    config: Pretrain,
    step: Step,
    batches: Batches,
    validation: Tensor,
    guide: AttentionGuide | None = None,
    monitor: Monitor | None = None,
) -> Training:
    """Return the training of `config`, evaluated regularly and at the end on uint8 images `validation`."""
    groups = decay_groups(step.method, config)
    steps_per_epoch = len(batches) // batches.accumulate

    def begin(index: int) -> None:
        step.epoch = index / steps_per_epoch
        if guide:
            guide.before_step(index, batches)

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = step.mean.device
        with evaluating_in(config.evaluate_precision, device):
            found = {"val_loss": validation_loss(step, validation.to(device), config.seed, batches.batch)}
        return found | monitor.measure() if monitor else found

    return Training(
        model=step,
        optimizer=adamw(groups, config.learning_rate, config.betas),
        batches=batches,
        steps=config.epochs * len(batches) // config.compute.accumulate,
        learning_rate=schedule(config, steps_per_epoch),
        compute=config.compute,
        seed=config.seed,
        before_step=begin,
        grad_clip=config.grad_clip,
        evaluate=evaluate,
        evaluate_every=max(1, round(config.monitor.every * steps_per_epoch)),
        extra_state={"weight_maps": guide.maps} if guide else {},
    )


def schedule(config: Pretrain, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate by optimiser step (0-based): warm-up from `start_lr`, then `config.schedule`.

    SimMIM's schedules follow its code, which sets each step's rate only after that step.
    """
    peak, warmup, start, late = config.learning_rate, config.warmup_epochs, config.start_lr, config.schedule != "cosine"

    def rate(step: int) -> float:
        now = max(step - late, 0) / steps_per_epoch
        if config.schedule == "simmim_steps":
            return warmup_drops(now, peak, warmup, start, config.drops)
        curve = whole_cosine if late else warmup_cosine
        return curve(now, peak, config.min_lr, warmup, config.epochs, start)

    return rate


def decay_groups(method: Method, config: Pretrain) -> list[dict[str, Any]]:
    """Return parameter groups by weight decay; the method selects those without, at least biases and norms."""
    return parameter_groups(method.named_parameters(), config.weight_decay, method.no_decay)


def _unseen(root: Path) -> ImageFolder:
    """Return the validation images, or the training images if there are none."""
    try:
        return ImageFolder(root, "val")
    except FileNotFoundError:
        log.warning("%s has no validation images: the final loss and the picture use training images", root)
        return ImageFolder(root, "train")


def _keeping(
    config: Pretrain, run: RunDir, step: Step, batches: Batches, before: Callable[[int], None] | None
) -> Callable[[int], None]:
    """Return a function to call before each step: it saves the encoder if a kept epoch has ended, then calls `before`.

    A restart repeats these steps; an encoder that already exists is kept.
    """
    every = config.keep_encoder_every or config.epochs
    ends = {epoch * len(batches) // batches.accumulate: epoch for epoch in range(every, config.epochs, every)}

    def begin(index: int) -> None:
        if index in ends:
            with whole(step):
                if rank_and_world()[0] == 0 and not run.encoder_at(ends[index]).exists():
                    _save(config, run, step, run.encoder_at(ends[index]))
        if before:
            before(index)

    return begin


def _save(config: Pretrain, run: RunDir, step: Step, file: Path) -> None:
    about = run.read_about()
    info = EncoderInfo(
        family=config.method.kind,
        vit=config.encoder,
        final_norm=step.method.final_norm,
        traits=step.method.traits,
        positions=step.method.positions,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        recipe=about["recipe"],
        identity=about["identity"],
    )
    save_encoder(file, step.method.encoder_state(), info)


def _draw(
    config: Pretrain, run: RunDir, step: Step, images: Tensor, guide: AttentionGuide | None, split: str
) -> dict[str, Path]:
    """Write the picture of uint8 images of `split`; return its file by name."""
    images = images.to(step.mean.device)
    weights = guide.weights(images) if guide else None
    rows = picture_rows(step, images, fixed_noise(images, step.grid[0] * step.grid[1], config.seed), weights)
    norm_pix = "rebuilt" in rows and getattr(config.method, "norm_pix", False)
    colours = "; mean and contrast of each hidden patch taken from the image" if norm_pix else ""
    caption = f"{split} images, {config.masking.hidden_share:.0%} of the patches hidden{colours}"
    file = run.plots / "reconstructions.png"
    save_picture(file, rows, caption)
    return {"reconstructions": file}


def _outcome(config: Pretrain, trained: Trained, epoch: int, device: torch.device) -> Outcome:
    facts: dict[str, Any] = {
        "method": config.method.kind,
        "masking": config.masking.kind,
        "epochs": config.epochs,
        "steps": config.epochs * epoch // config.compute.accumulate,
        "batch": config.batch,
        "learning_rate": config.learning_rate,
        "image": config.encoder.image,
        "patch": config.encoder.patch,
        "mask_ratio": config.masking.hidden_share,
        "predict": config.masking.predicted_share,
        "image_resize": config.resizing,
        "evaluate_precision": config.evaluate_precision,
        "seed": config.seed,
    }
    if isinstance(config.masking, AttentionMasking):
        facts |= config.masking.facts()
    if isinstance(config.method, MaskAlignConfig):
        facts["teacher"] = config.method.teacher or "the checkpoint"
    return Outcome(
        metrics={"loss": trained.metrics.pop("val_loss"), **trained.metrics},
        facts=facts,
        images_per_second=trained.images_per_second,
        loading=trained.loading,
        peak_memory=trained.peak_memory,
        device=device_name(device),
    )
