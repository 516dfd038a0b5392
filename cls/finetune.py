"""Fine-tuning: the whole encoder trained with a classifier head, as in MAE and CrossMAE.

    mimbench run cls/finetune_vitb checkpoint=encoder.safetensors data=imagenet

AdamW with a learning rate that falls by `layer_decay` from each layer to the one before it, a cosine per optimiser
step, and timm's augmentation. On a plain ViT the model is timm's VisionTransformer; the numbers are those of the
papers' scripts (the model, layer numbers and what is spared weight decay: backbones/classifier.py).

Reads the images and the checkpoint; writes metrics and training states into the run directory, the last weights as
classifier.safetensors and those of the best evaluation as classifier-best.safetensors. `finetune_top1` is of the last
weights. `finetune_best_top1` is the highest of all evaluations: an epoch chosen by validation accuracy, which is what
CrossMAE's checkpoints and numbers are (its script saves an epoch only if it is the best so far) and what MAE's script
prints beside the last; it is higher by chance alone, about 0.05 points on ImageNet.
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
from mimbench.engine.training.optim import adamw, parameter_groups
from mimbench.engine.training.schedule import warmup_cosine, whole_cosine
from mimbench.engine.training.train import Trained, Training, train

log = logging.getLogger(__name__)

# B image of a batch, C class, S side of an image


class FinetuneModel(nn.Module):
    """A classifier with its training loss. With `draws`, what is random is drawn by image and optimiser step."""

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
        """The loss of uint8 images (B, 3, S, S) with labels (B,)."""
        if self.draws is not None:
            self.draws.advance()
        images, targets = self.augment(*batch, self.draws)
        logits_BC = self.classifier(images).float()
        return {"loss": F.cross_entropy(logits_BC, targets, label_smoothing=self.smoothing)}

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, C) of uint8 images, not augmented."""
        logits_BC: Tensor = self.classifier(normalise(images, self.augment.mean, self.augment.std))
        return logits_BC


@dataclass(frozen=True)
class Prepared:
    """A fine-tuning about to start."""

    training: Training
    evaluation: Evaluation
    info: ClassifierInfo
    facts: dict[str, Any]
    family: str | None


class Best:
    """Keeps the weights of the evaluation with the highest top-1 at `path`; of equal ones the last, as CrossMAE does.

    The value that counts is the one in the file, so that it outlives whatever stops the run.
    """

    def __init__(self, path: Path, info: ClassifierInfo) -> None:
        self.path, self.info = path, info
        self.held = _held(path)

    def __call__(self, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Take in an evaluation of `model` after `step` optimiser steps; one that overflowed is none."""
        assert isinstance(model, FinetuneModel)
        if not math.isfinite(metrics["finetune_loss"]):
            return
        if self.held is None or metrics["finetune_top1"] >= self.held.metrics["finetune_top1"]:
            self.held = scored(self.info, step, metrics)
            save_classifier(self.path, model.classifier, self.held)


def _held(path: Path) -> ClassifierInfo | None:
    """What an earlier attempt has kept; nothing of a damaged file, which the next evaluation replaces."""
    try:
        return read_info(path) if path.exists() else None
    except ValueError as error:
        log.warning("%s; the best is looked for anew", error)
        return None


def run(config: Finetune, run: RunDir) -> Outcome:
    """Fine-tune and evaluate: metrics `finetune_top1`, `finetune_top5`, `finetune_best_top1` (%) and `finetune_loss`.

    Raises:
        FileNotFoundError: if the data set or the checkpoint is not there.
        ValueError: if either is not what it should be, or the loss becomes NaN.
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
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=prepared.family,
    )


def _leave(config: Finetune, run: RunDir, evaluation: Evaluation, trained: Trained, info: ClassifierInfo) -> None:
    """Write the last weights, and what they predict if that is wanted."""
    assert isinstance(trained.model, FinetuneModel)
    if rank_and_world()[0] == 0:
        save_classifier(run.classifier, trained.model.classifier, info)
    if evaluation.predictions is not None:
        evaluation.predictions.write(run.predictions, evaluation.crops.folder, config.data)


def _best_metric(info: ClassifierInfo) -> dict[str, float]:
    return {"finetune_best_top1": info.metrics["finetune_top1"]} if info.metrics else {}


def prepare(config: Finetune, device: torch.device) -> Prepared:
    """Model, optimiser, batches and schedule of a fine-tuning, and the facts of its protocol.

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
    """Every class has images to learn from; torchvision's ImageFolder, which the papers use, wants that too.

    Raises:
        UnfitError: (a ValueError) naming a class that has none.
    """
    counts = splits.train.labels.bincount(minlength=splits.classes)
    if len(empty := (counts == 0).nonzero().flatten().tolist()):
        where = Path(splits.train.paths.root) / splits.train.classes[empty[0]]
        remedy = f"name some of its images in {subset}" if subset else "add some, or remove the class"
        raise unfit(where, "holds no images to train on", f"{remedy} ({len(empty)} of {splits.classes} are empty)")


def _require_pairs(config: Finetune) -> None:
    """Mixing pairs the images that one process has at a time.

    Raises:
        ValueError: if their number is odd.
    """
    micro = micro_batch(config)
    if config.mixes and micro % 2:
        raise ValueError(
            f"batch={config.batch} gives each of {rank_and_world()[1]} processes {micro} images at a time: mixup pairs "
            f"images, so that must be even. Take another batch or compute.accumulate, or mixup=0 cutmix=0"
        )


def described(config: Finetune, splits: Splits, encoder: VisionTransformer, info: EncoderInfo | None) -> ClassifierInfo:
    """What the classifier that comes of this is, for its file."""
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
    """Parameter groups by layer and weight decay, in order of first appearance: 28 for ViT-B."""
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
    """The learning rate of each optimiser step (0-based), before a group's `lr_scale`, which scales min_lr too."""
    if config.schedule == "simmim_cosine":
        return _simmim(config, steps_per_epoch, config.peak_lr, 0.0, 0.0)

    def rate(step: int) -> float:
        t = step / steps_per_epoch
        return warmup_cosine(t, config.peak_lr, config.min_lr, config.warmup_epochs, config.epochs, config.start_lr)

    return rate


def offset(config: Finetune, steps_per_epoch: int) -> Callable[[int], float] | None:
    """What SimMIM's schedule adds to the rate of every layer alike: its `start_lr` and `min_lr` are nobody's share."""
    if config.schedule == "cosine":
        return None
    return _simmim(config, steps_per_epoch, 0.0, config.min_lr, config.start_lr)


def _simmim(
    config: Finetune, steps_per_epoch: int, peak: float, minimum: float, start: float
) -> Callable[[int], float]:
    """SimMIM's script sets the rate after a micro-batch to what was meant for it."""
    accumulate = config.compute.accumulate

    def rate(step: int) -> float:
        t = max(step * accumulate - 1, 0) / (steps_per_epoch * accumulate)
        return whole_cosine(t, peak, minimum, config.warmup_epochs, config.epochs, start)

    return rate


class Evaluation:
    """Measures a model on the validation split; `predictions` are those of the last time, where they are wanted."""

    def __init__(self, config: Finetune, splits: Splits, device: torch.device) -> None:
        self.config, self.device = config, device
        self.crops = CentreCrops(splits.val, config.image, config.eval_crop)
        self.dtype = autocast_dtype(config.compute, device)
        self.predictions: Predictions | None = None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metrics `finetune_top1`, `finetune_top5` and `finetune_loss`, the same in every process."""
        assert isinstance(model, FinetuneModel)
        config = self.config
        if config.save_predictions:
            self.predictions = Predictions(config.save_logits)
        loader = evaluation_loader(shared(self.crops), micro_batch(config), config.compute.workers)
        with autocast(self.device, self.dtype):
            return accuracy("finetune", model.logits, loader, self.device, gather=True, watch=self.predictions)


def facts(config: Finetune, splits: Splits, encoder: VisionTransformer, info: EncoderInfo | None) -> dict[str, Any]:
    """What of the protocol changes the numbers."""
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
        "interpolation": "bicubic, antialiased",
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
