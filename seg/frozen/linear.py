"""A linear head on frozen patch features: `mimbench run seg/linear_dinov2 checkpoint=PATH data=ade20k`.

The encoder runs without gradients in the training process; only the head is trained and saved. With `views=cached` it
runs over the training images once (seg/frozen/cached.py). Metrics are
`seg_linear_miou`, `seg_linear_macc` and `seg_linear_aacc` in percent, at the original size of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mimbench.engine.data.batches import Batches, move
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.splits import SPLITS
from mimbench.engine.run.process import device_name, rank_and_world, seed_all, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw
from mimbench.engine.training.train import Training, train
from mimbench.seg.config import LinearSegmentationConfig
from mimbench.seg.data.split import LabelledSplit, open_labelled, require_usable
from mimbench.seg.evaluation.inference import require_views
from mimbench.seg.frozen.cached import cached_features
from mimbench.seg.frozen.encoder import Blocks, frozen_encoder
from mimbench.seg.model.linear import FrozenEncoder, FrozenSegmenter, LinearHead
from mimbench.seg.model.segmenter import RGB, prepared
from mimbench.seg.optim import BETAS, learning_rate
from mimbench.seg.upernet import (
    data_facts,
    evaluation_of,
    inference_facts,
    micro_batch,
    training_batches,
    write_results,
)

PREFIX = "seg_linear_"
SETTINGS = ("views", "image", "steps", "batch", "lr", "schedule", "loss_over", "seed")  # shown in the result


def run(config: LinearSegmentationConfig, run: RunDir) -> Outcome:
    """Train a head and evaluate it.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if one of them is invalid, or the loss becomes NaN.
    """
    device = setup_process(config.compute, config.seed)
    directory = locate(config.data)
    train_split, val = (open_labelled(directory, part, background=config.background) for part in SPLITS)
    frozen = frozen_encoder(config, Blocks(config.layers, config.blocks), config.pixels, device)
    encoder, mean, std = frozen.encoder, frozen.mean, frozen.std
    require_usable(val, partial(require_views, encoder, config=config.inference, side=config.image))
    seed_all(config.seed)  # the head must not depend on earlier random numbers
    head = LinearHead(
        encoder.width, len(val.classes), norm=config.norm, dropout=config.dropout, loss_over=config.loss_over
    )
    evaluation = evaluation_of(config, val, device, run.path, PREFIX)
    trained = train(
        run,
        Training(
            model=head,
            optimizer=adamw(_groups(config, head), config.lr, BETAS),
            batches=_batches(config, train_split, encoder, mean, std),
            steps=config.steps,
            learning_rate=partial(
                learning_rate, peak=config.lr, steps=config.steps, warmup=config.warmup, schedule=config.schedule
            ),
            compute=config.compute,
            seed=config.seed,
            evaluate=lambda model: evaluation(FrozenSegmenter(encoder, _as_head(model), mean, std)),
            evaluate_every=config.evaluate_every,
        ),
    )
    if rank_and_world()[0] == 0:
        write_results(run, evaluation)
    facts = {
        "protocol": "linear head on frozen patch features",
        **frozen.facts,
        "head": f"{'batch norm, ' if config.norm == 'batch' else ''}1x1 convolution, dropout {config.dropout:g}",
        "pixels": [list(mean), list(std)],
        **{name: getattr(config, name) for name in SETTINGS},
        **data_facts(val),
        **inference_facts(config),
    }
    return Outcome(
        metrics=trained.metrics,
        facts=facts,
        images_per_second=trained.images_per_second,
        loading=trained.loading,
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=frozen.family,
    )


def _batches(
    config: LinearSegmentationConfig, train_split: LabelledSplit, encoder: FrozenEncoder, mean: RGB, std: RGB
) -> Batches:
    """Return batches of features, of random crops or of whole images."""
    if config.views == "augmented":
        return training_batches(config, train_split, prepare=partial(_encoded, encoder, mean, std))
    return Batches(
        cached_features(config, train_split, encoder, mean, std),
        micro_batch(config),
        config.seed,
        accumulate=config.compute.accumulate,
        prepare=partial(_named, encoder.device),
    )


def _named(device: torch.device, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    features, labels = batch
    return {"features": move(features, device), "labels": move(labels, device)}


def _groups(config: LinearSegmentationConfig, head: LinearHead) -> list[dict[str, Any]]:
    decayed = [p for p in head.parameters() if config.decay_all or p.ndim > 1]
    spared = [p for p in head.parameters() if not (config.decay_all or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _as_head(model: Any) -> LinearHead:
    assert isinstance(model, LinearHead)
    return model


def _encoded(encoder: FrozenEncoder, mean: RGB, std: RGB, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Encode a batch of images."""
    batch = move(batch, encoder.device)
    return {"features": encoder(prepared(batch["images"], batch["sizes"], mean, std)), "labels": batch["labels"]}
