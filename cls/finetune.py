"""Fine-tuning: the whole encoder trained with a classifier head, as in MAE and CrossMAE.

    mimbench run cls/finetune_vitb checkpoint=encoder.safetensors data=imagenet

AdamW with a learning rate that falls by `layer_decay` from each layer to the one before it, a cosine per optimiser
step, and timm's augmentation. On a plain ViT the model is timm's VisionTransformer; the numbers are those of the
papers' scripts (the model, layer numbers and what is spared weight decay: backbones/classifier.py).

Reads the images and the checkpoint; writes metrics and training states into the run directory. The last weights are
evaluated, not the best: choosing the epoch by validation accuracy is what the papers' scripts do, and is not done here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.checkpoint import EncoderInfo
from backbones.classifier import Classifier, build_classifier, layer_of, load_encoder_into, no_decay
from backbones.vit import VisionTransformer
from cls.accuracy import accuracy
from cls.config import Finetune
from cls.data import BatchAugmentation, CentreCrops, Splits, finetune_crops, micro_batch, open_splits, resized_side
from cls.features import autocast, encoder_facts, encoder_of, statistics
from engine.data import Batches, evaluation_loader
from engine.images import normalise
from engine.optim import adamw, parameter_groups
from engine.process import autocast_dtype, device_name, setup_process
from engine.result import Outcome
from engine.rundir import RunDir
from engine.schedule import warmup_cosine
from engine.train import Training, train

# B image of a batch, C class, S side of an image


class FinetuneModel(nn.Module):
    """A classifier with its training loss."""

    def __init__(self, classifier: Classifier, augment: BatchAugmentation, smoothing: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.augment = augment
        self.smoothing = 0.0 if augment.mix else smoothing  # mixed targets are smoothed already

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The loss of uint8 images (B, 3, S, S) with labels (B,)."""
        images, targets = self.augment(*batch)
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
    facts: dict[str, Any]
    family: str | None


def run(config: Finetune, run: RunDir) -> Outcome:
    """Fine-tune and evaluate: metrics `finetune_top1`, `finetune_top5` (percent) and `finetune_loss`.

    Raises:
        FileNotFoundError: if the data set or the checkpoint is not there.
        ValueError: if either is not what it should be, or the loss becomes NaN.
    """
    device = setup_process(config.compute, config.seed)
    prepared = prepare(config, device)
    trained = train(run, prepared.training)
    return Outcome(
        metrics=trained.metrics,
        facts=prepared.facts,
        images_per_second=trained.images_per_second,
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=prepared.family,
    )


def prepare(config: Finetune, device: torch.device) -> Prepared:
    """Model, optimiser, batches and schedule of a fine-tuning, and the facts of its protocol."""
    encoder, info = encoder_of(config)
    splits = open_splits(config.data)
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
    )
    steps_per_epoch = len(batches) // config.compute.accumulate
    training = Training(
        model=FinetuneModel(classifier, augment, config.label_smoothing),
        optimizer=adamw(groups(classifier, config), config.peak_lr, config.betas),
        batches=batches,
        steps=config.epochs * steps_per_epoch,
        learning_rate=schedule(config, steps_per_epoch),
        compute=config.compute,
        seed=config.seed,
        clip=config.clip,
        ema=config.ema,
        evaluate=evaluation(config, splits, device),
        evaluate_every=config.evaluate_every and config.evaluate_every * steps_per_epoch,
    )
    return Prepared(training, facts(config, splits, encoder, info), None if info is None else info.family)


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

    def rate(step: int) -> float:
        t = step / steps_per_epoch
        return warmup_cosine(t, config.peak_lr, config.min_lr, config.warmup_epochs, config.epochs)

    return rate


def evaluation(config: Finetune, splits: Splits, device: torch.device) -> Callable[[nn.Module], dict[str, float]]:
    """What measures a model on the validation split."""
    crops = CentreCrops(splits.val, config.image, config.eval_crop)
    dtype = autocast_dtype(config.compute, device)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, FinetuneModel)
        loader = evaluation_loader(crops, config.micro_batch, config.compute.workers)
        with autocast(device, dtype):
            return accuracy("finetune", model.logits, loader, device)

    return evaluate


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
        "protocol": f"fine-tune, {config.epochs} epochs, last weights",
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
        "seed": config.seed,
        **encoder_facts(config, encoder, info),
        **splits.facts(),
    }
