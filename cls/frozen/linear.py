"""Linear probe: a linear classifier on features of the frozen encoder.

    mimbench run cls/linear_vitb checkpoint=encoder.safetensors data=imagenet

The head is a BatchNorm without affine part and a linear layer, trained by LARS, as in MAE and CrossMAE. There are two
protocols, which the result distinguishes:

    views="augmented"   the papers': every epoch encodes a new random crop (and flip) of every image
    views="cached"      the centre crop of every image is encoded once, and the head is trained on it. The encoder runs
                        once instead of `epochs` times, without augmentation, so the numbers differ

Validation features never change and are computed once in both. The head's batch norm computes its statistics from a
micro-batch, in the papers from one GPU: batch=16384 compute.accumulate=32 makes both 512 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.cls.accuracy import accuracy, require_finite
from mimbench.cls.config import Linear
from mimbench.cls.data.crops import Splits, micro_batch, open_splits, probe_crops, resized_side
from mimbench.cls.frozen.encoders import frozen_encoder
from mimbench.cls.frozen.features import FrozenEncoder, RowBatches, features_of
from mimbench.engine.data.batches import Batches, MapStyle
from mimbench.engine.data.waiting import Encoding
from mimbench.engine.run.cores import Workers
from mimbench.engine.run.process import device_name, seed_all, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import LARS
from mimbench.engine.training.schedule import warmup_cosine
from mimbench.engine.training.train import Training, train

# B image of a batch, N image of a split, C class, D feature

EVALUATED = 16_384  # features per forward pass of the head in evaluation


class Probe(nn.Module):
    """Batch norm without weights, then a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy of features (B, D) with labels (B,)."""
        features_BD, label_B = batch
        return {"loss": F.cross_entropy(self.logits(features_BD).float(), label_B)}

    def logits(self, features_BD: Tensor) -> Tensor:
        """Return logits (B, C)."""
        logits_BC: Tensor = self.linear(self.norm(features_BD))
        return logits_BC


class EncodedBatches(Batches):
    """Batches of images, encoded to features."""

    def __init__(
        self, encoder: FrozenEncoder, dataset: MapStyle, batch: int, seed: int, *, accumulate: int, workers: Workers
    ) -> None:
        super().__init__(dataset, batch, seed, accumulate=accumulate, workers=workers)
        self.encoder = encoder

    def starting_at(self, position: int) -> Iterator[Any]:
        """Yield pairs of features (B, D) and labels (B,) without end, starting at micro-batch `position`."""
        for images, label_B in super().starting_at(position):
            yield self.encoder(images), label_B


def run(config: Linear, run: RunDir) -> Outcome:
    """Train a probe and return `linear_top1`, `linear_top5` (percent) and `linear_loss`.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data or the checkpoint does not fit, or the loss becomes NaN.
    """
    device = setup_process(config.compute, config.seed)
    encoder = frozen_encoder(config, device)
    splits = open_splits(config.data, config.jpeg_decoder, config.subset)
    encoding = Encoding()
    trained = train(run, prepare(config, encoder, splits, encoding))
    require_finite(trained.metrics, config.compute)
    return Outcome(
        metrics=trained.metrics,
        facts=facts(config, encoder, splits),
        images_per_second=None
        if config.views == "cached"
        else trained.images_per_second,  # cached steps read features, not images
        loading=encoding.loading(device) if config.views == "cached" else trained.loading,
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=encoder.family,
    )


def prepare(config: Linear, encoder: FrozenEncoder, splits: Splits, encoding: Encoding | None = None) -> Training:
    """Build head, optimiser, batches and schedule of a probe; `encoding` measures what is encoded here."""
    batches = training_batches(config, encoder, splits, encoding)
    steps_per_epoch = len(batches) // config.compute.accumulate
    seed_all(config.seed)  # the head does not depend on earlier draws
    head = Probe(encoder.width, splits.classes)
    validation = features_of(encoder, splits.val, config.image, config.eval_crop, config.compute.workers, encoding)
    return Training(
        model=head,
        optimizer=LARS(head.parameters(), config.peak_lr, config.weight_decay),
        batches=batches,
        steps=config.epochs * steps_per_epoch,
        learning_rate=schedule(config, steps_per_epoch),
        compute=config.compute,
        seed=config.seed,
        evaluate=evaluation(*validation),
        evaluate_every=config.evaluate_every and config.evaluate_every * steps_per_epoch,
    )


def training_batches(
    config: Linear, encoder: FrozenEncoder, splits: Splits, encoding: Encoding | None = None
) -> Batches:
    """Return the head's training batches: features of new crops, or of centre crops, which are encoded here."""
    accumulate, workers = config.compute.accumulate, config.compute.workers
    if config.views == "cached":
        batches = RowBatches(  # first, because it rejects a too large batch before anything is encoded
            lambda index_B: (features_ND[index_B], label_N[index_B]),
            len(splits.train), micro_batch(config), config.seed, accumulate=accumulate, device=encoder.device,
        )  # fmt: skip
        features_ND, label_N = features_of(encoder, splits.train, config.image, config.eval_crop, workers, encoding)
        return batches
    crops = probe_crops(config, splits.train)
    return EncodedBatches(encoder, crops, micro_batch(config), config.seed, accumulate=accumulate, workers=workers)


def schedule(config: Linear, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate by optimiser step (0-based): warm-up, then a cosine to 0."""

    def rate(step: int) -> float:
        return warmup_cosine(step / steps_per_epoch, config.peak_lr, 0.0, config.warmup_epochs, config.epochs)

    return rate


def evaluation(features_ND: Tensor, label_N: Tensor) -> Callable[[nn.Module], dict[str, float]]:
    """Return the function that evaluates a head on the validation split's features."""

    def evaluate(head: nn.Module) -> dict[str, float]:
        assert isinstance(head, Probe)
        batches = zip(features_ND.split(EVALUATED), label_N.split(EVALUATED), strict=True)
        return accuracy("linear", head.logits, batches, features_ND.device)

    return evaluate


def facts(config: Linear, encoder: FrozenEncoder, splits: Splits) -> dict[str, Any]:
    """Return the facts of the protocol that change the numbers."""
    cached = config.views == "cached"
    return {
        "protocol": "linear probe on cached centre crops (not the papers')" if cached else "linear probe, the papers'",
        "views": config.views,
        "crop": config.crop,
        "feature": encoder.describe(config.pool, config.norm),
        "pool": config.pool,
        "norm": config.norm,
        "image": config.image,
        "eval_resize": resized_side(config.image, config.eval_crop),
        "image_resize": "bicubic, antialiased",
        "epochs": config.epochs,
        "batch": config.batch,
        "micro_batch": micro_batch(config),
        "base_lr": config.base_lr,
        "seed": config.seed,
        **encoder.facts(config),
        **splits.facts(),
    }
