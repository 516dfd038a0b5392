"""Fine-tuning: train the whole encoder with a classifier head, as in MAE and CrossMAE.

    mimbench run cls/finetune_vitb checkpoint=encoder.safetensors data=imagenet

AdamW with a learning rate that decreases by `layer_decay` from each layer to the layer before it, a cosine schedule
per optimiser step, and timm's augmentation. For a plain ViT the model is timm's VisionTransformer, and the numbers
equal those of the papers' scripts (backbones/classifier.py: the model, layer numbers, parameters without weight decay).

Reads the images and the checkpoint. Writes metrics and training states into the run directory, the last weights as
classifier.safetensors and those of the best evaluation as classifier-best.safetensors. `finetune_top1` is measured
with the last weights. `finetune_best_top1` is the highest of all evaluations: the epoch is selected by validation
accuracy, as in CrossMAE's checkpoints and numbers (its script saves an epoch only if it is the best so far). MAE's
script prints it beside the last value. The selection alone raises it by about 0.05 points on ImageNet.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.backbones.checkpoint import EncoderInfo
from mimbench.backbones.classifier import Classifier, build_classifier, layer_of, load_encoder_into, no_decay
from mimbench.backbones.classifier_file import ClassifierInfo, read_info, save_classifier, scored
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.accuracy import accuracy, require_finite, shared
from mimbench.cls.config import Finetune
from mimbench.cls.data.crops import (
    BatchAugmentation,
    CentreCrops,
    Splits,
    finetune_crops,
    micro_batch,
    open_splits,
    resized_side,
)
from mimbench.cls.draws import StepDraws, draw_by_image
from mimbench.cls.frozen.encoders import encoder_facts, encoder_of, statistics
from mimbench.cls.frozen.features import autocast
from mimbench.cls.predictions import Predictions
from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.images import normalise
from mimbench.engine.run.process import autocast_dtype, device_name, rank_and_world, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.compiling import compile_parts
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.schedule import warmup_cosine, whole_cosine
from mimbench.engine.training.train import Trained, Training, train

log = logging.getLogger(__name__)

# B image of a batch, C class, S side of an image


class FinetuneModel(nn.Module):
    """A classifier with its training loss. With `draws`, random numbers are drawn per image and optimiser step."""

    def __init__(
        self, classifier: Classifier, augment: BatchAugmentation, smoothing: float, draws: StepDraws | None = None
    ) -> None:
        super().__init__()
        self.draws = draws
        if draws is not None:
            draw_by_image(classifier, draws)
        self.classifier = classifier
        self.augment = augment
        self.smoothing = 0.0 if augment.mix else smoothing  # mixed targets are smoothed already

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of uint8 images (B, 3, S, S) with labels (B,)."""
        if self.draws is not None:
            self.draws.advance()
        images, targets = self.augment(*batch, self.draws)
        logits_BC = self.classifier(images).float()
        return {"loss": F.cross_entropy(logits_BC, targets, label_smoothing=self.smoothing)}

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of uint8 images, without augmentation."""
        logits_BC: Tensor = self.classifier(normalise(images, self.augment.mean, self.augment.std))
        return logits_BC


@dataclass(frozen=True)
class Prepared:
    """Everything a fine-tuning needs to start."""

    training: Training
    evaluation: Evaluation
    info: ClassifierInfo
    facts: dict[str, Any]
    family: str | None


class Best:
    """Keeps the weights of the evaluation with the highest top-1 at `path`; of equal ones the latest, as CrossMAE.

    The best value so far is read from the file, so it is not lost when the run is interrupted.
    """

    def __init__(self, path: Path, info: ClassifierInfo) -> None:
        self.path, self.info = path, info
        self.held = _held(path)

    def __call__(self, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Save `model` after `step` optimiser steps if it is the best so far; metrics that overflowed are ignored."""
        assert isinstance(model, FinetuneModel)
        if not math.isfinite(metrics["finetune_loss"]):
            return
        if self.held is None or metrics["finetune_top1"] >= self.held.metrics["finetune_top1"]:
            self.held = scored(self.info, step, metrics)
            save_classifier(self.path, model.classifier, self.held)


def _held(path: Path) -> ClassifierInfo | None:
    """Return the info of the file an earlier attempt saved; None if it is damaged (the next evaluation replaces it)."""
    try:
        return read_info(path) if path.exists() else None
    except ValueError as error:
        log.warning("%s; the search for the best epoch restarts", error)
        return None


def run(config: Finetune, run: RunDir) -> Outcome:
    """Fine-tune and return `finetune_top1`, `finetune_top5`, `finetune_best_top1` (%) and `finetune_loss`.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data or the checkpoint does not fit, or the loss becomes NaN.
    """
    device = setup_process(config.compute, config.seed)
    prepared = prepare(config, device)
    about = run.read_about()
    info = replace(prepared.info, recipe=about["recipe"], identity=about["identity"])
    best = Best(run.best_classifier, info)
    trained = train(run, replace(prepared.training, keep=best))
    require_finite(trained.metrics, config.compute)
    _leave(config, run, prepared.evaluation, trained, scored(info, prepared.training.steps, trained.metrics))
    chosen = best.held or info
    return Outcome(
        metrics={**trained.metrics, **_best_metric(chosen)},
        facts={**prepared.facts, "best_epoch": chosen.step and prepared.training.epoch(chosen.step)},
        images_per_second=trained.images_per_second,
        loading=trained.loading,
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=prepared.family,
    )


def _leave(config: Finetune, run: RunDir, evaluation: Evaluation, trained: Trained, info: ClassifierInfo) -> None:
    """Write the last weights, and their predictions if the config asks for them."""
    assert isinstance(trained.model, FinetuneModel)
    if rank_and_world()[0] == 0:
        save_classifier(run.classifier, trained.model.classifier, info)
    if evaluation.predictions is not None:
        evaluation.predictions.write(run.predictions, evaluation.crops.folder, config.data)


def _best_metric(info: ClassifierInfo) -> dict[str, float]:
    return {"finetune_best_top1": info.metrics["finetune_top1"]} if info.metrics else {}


def prepare(config: Finetune, device: torch.device) -> Prepared:
    """Build the model, optimiser, batches and schedule of a fine-tuning, and the facts of its protocol.

    Raises:
        FileNotFoundError, ValueError: as `run`.
    """
    encoder, info = encoder_of(config)
    splits = open_splits(config.data, config.jpeg_decoder, config.subset)
    _require_images(splits, config.subset)
    _require_pairs(config)
    head = (splits.classes, config.drop_path, config.pool, config.image)
    classifier = build_classifier(encoder.shape, *head, traits=encoder.traits)
    load_encoder_into(classifier, encoder.state_dict(), encoder.interpolation)
    if config.compile:
        compile_parts([classifier])
    augment = BatchAugmentation(config, splits.classes, *statistics(info), device)
    batches = Batches(
        finetune_crops(config, splits.train),
        micro_batch(config),
        config.seed,
        accumulate=config.compute.accumulate,
        workers=config.compute.workers,
        paired=config.mixes,
    )
    steps_per_epoch = len(batches) // config.compute.accumulate
    rank, world = rank_and_world()
    parts = world * config.compute.accumulate
    draws = StepDraws(config.seed, config.batch, parts=parts, part=rank, stride=world, paired=config.mixes)
    evaluation = Evaluation(config, splits, device)
    training = Training(
        model=FinetuneModel(classifier, augment, config.label_smoothing, draws),
        optimizer=adamw(groups(classifier, config), config.peak_lr, config.betas),
        batches=batches,
        steps=config.epochs * steps_per_epoch,
        learning_rate=schedule(config, steps_per_epoch),
        offset=offset(config, steps_per_epoch),
        compute=config.compute,
        seed=config.seed,
        before_step=draws.begin,
        grad_clip=config.grad_clip,
        ema=config.ema,
        evaluate=evaluation,
        evaluate_every=config.evaluate_every and config.evaluate_every * steps_per_epoch,
    )
    family = None if info is None else info.family
    about = described(config, splits, encoder, info)
    return Prepared(training, evaluation, about, facts(config, splits, encoder, info), family)


def _require_images(splits: Splits, subset: str | None) -> None:
    """Check that every class has training images; torchvision's ImageFolder, which the papers use, requires that too.

    Raises:
        UnfitError: (a ValueError) naming a class without images.
    """
    counts = splits.train.labels.bincount(minlength=splits.classes)
    if len(empty := (counts == 0).nonzero().flatten().tolist()):
        where = Path(splits.train.paths.root) / splits.train.classes[empty[0]]
        remedy = f"name some of its images in {subset}" if subset else "add some, or remove the class"
        raise unfit(where, "holds no images to train on", f"{remedy} ({len(empty)} of {splits.classes} are empty)")


def _require_pairs(config: Finetune) -> None:
    """Check that each process has an even number of images per micro-batch, because mixing pairs them.

    Raises:
        ValueError: if the number is odd.
    """
    micro = micro_batch(config)
    if config.mixes and micro % 2:
        raise ValueError(
            f"batch={config.batch} is {micro} images per micro-batch on each of {rank_and_world()[1]} processes, but "
            f"mixup pairs images and needs an even number; change batch or compute.accumulate, or set mixup=0 cutmix=0"
        )


def described(config: Finetune, splits: Splits, encoder: VisionTransformer, info: EncoderInfo | None) -> ClassifierInfo:
    """Return the description of the resulting classifier, to be stored in its file."""
    mean, std = statistics(info)
    return ClassifierInfo(
        family="random" if info is None else info.family,
        vit=replace(encoder.shape, image=config.image),
        pool=config.pool,
        outputs=splits.classes,
        classes=tuple(splits.train.classes),
        mean=mean,
        std=std,
        traits=encoder.traits,
        interpolation=encoder.interpolation,
        eval_crop=config.eval_crop,
    )


def groups(classifier: Classifier, config: Finetune) -> list[dict[str, Any]]:
    """Return the parameter groups by layer and weight decay, in order of first appearance: 28 for ViT-B."""
    depth = len(classifier.blocks)
    return parameter_groups(
        classifier.named_parameters(),
        config.weight_decay,
        no_decay,
        lambda name: layer_of(name, depth),
        depth + 1,
        config.layer_decay,
    )


def schedule(config: Finetune, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from optimiser step (0-based) to learning rate; `lr_scale` scales it and its `min_lr`."""
    if config.schedule == "simmim_cosine":
        return _simmim(config, steps_per_epoch, config.peak_lr, 0.0, 0.0)

    def rate(step: int) -> float:
        t = step / steps_per_epoch
        return warmup_cosine(t, config.peak_lr, config.min_lr, config.warmup_epochs, config.epochs, config.start_lr)

    return rate


def offset(config: Finetune, steps_per_epoch: int) -> Callable[[int], float] | None:
    """Return what SimMIM's schedule adds to the rate of every layer: `start_lr` and `min_lr`, which it never scales."""
    if config.schedule == "cosine":
        return None
    return _simmim(config, steps_per_epoch, 0.0, config.min_lr, config.start_lr)


def _simmim(
    config: Finetune, steps_per_epoch: int, peak: float, minimum: float, start: float
) -> Callable[[int], float]:
    """Return SimMIM's schedule, one step late: its script sets the rate only after the micro-batch it is meant for."""
    accumulate = config.compute.accumulate

    def rate(step: int) -> float:
        t = max(step * accumulate - 1, 0) / (steps_per_epoch * accumulate)
        return whole_cosine(t, peak, minimum, config.warmup_epochs, config.epochs, start)

    return rate


class Evaluation:
    """Evaluates a model on the validation split; `predictions` are those of the latest call, if wanted."""

    def __init__(self, config: Finetune, splits: Splits, device: torch.device) -> None:
        self.config, self.device = config, device
        self.crops = CentreCrops(splits.val, config.image, config.eval_crop)
        self.dtype = autocast_dtype(config.compute, device)
        self.predictions: Predictions | None = None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return `finetune_top1`, `finetune_top5` and `finetune_loss`, the same in every process."""
        assert isinstance(model, FinetuneModel)
        config = self.config
        if config.save_predictions:
            self.predictions = Predictions(config.save_logits)
        loader = evaluation_loader(shared(self.crops), micro_batch(config), config.compute.workers)
        with autocast(self.device, self.dtype):
            return accuracy("finetune", model.logits, loader, self.device, gather=True, watch=self.predictions)


def facts(config: Finetune, splits: Splits, encoder: VisionTransformer, info: EncoderInfo | None) -> dict[str, Any]:
    """Return the facts of the protocol that change the numbers."""
    feature = (
        "mean of the patch tokens, then a norm trained from scratch"
        if config.pool == "avg"
        else (
            "class token after the final norm" + ("" if info and info.final_norm else ", which is trained from scratch")
        )
    )
    return {
        "protocol": f"fine-tune, {config.epochs} epochs; finetune_top1 of the last weights",
        "feature": feature,
        "pool": config.pool,
        "image": config.image,
        "eval_resize": resized_side(config.image, config.eval_crop),
        "image_resize": "bicubic, antialiased",
        "epochs": config.epochs,
        "batch": config.batch,
        "base_lr": config.base_lr,
        "layer_decay": config.layer_decay,
        "drop_path": config.drop_path,
        "schedule": config.schedule,
        "seed": config.seed,
        **encoder_facts(config, encoder, info),
        **splits.facts(),
    }
