"""A linear head on frozen patch features: `mimbench run seg/linear_dinov2 checkpoint=PATH data=ade20k`.

The encoder runs without gradients in the training process; only the head is trained and saved. Metrics are
`seg_linear_miou`, `seg_linear_macc` and `seg_linear_aacc` in percent, at the original size of the images.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo
from mimbench.engine.data.batches import move
from mimbench.engine.data.datasets import locate
from mimbench.engine.run.process import autocast_dtype, device_name, rank_and_world, seed_all, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.optim import adamw
from mimbench.engine.training.train import Training, train
from mimbench.seg.config import Backbone, LinearSegmentationConfig, PatchKnnConfig
from mimbench.seg.data.split import open_split
from mimbench.seg.model.build import AS_IT_IS, build_backbone, image_statistics
from mimbench.seg.model.linear import FrozenEncoder, FrozenSegmenter, LinearHead
from mimbench.seg.model.segmenter import RGB, prepared
from mimbench.seg.optim import BETAS, learning_rate
from mimbench.seg.upernet import data_facts, evaluation_of, inference_facts, training_batches, write_results

PREFIX = "seg_linear_"


class Blocks:
    """Which blocks' outputs are features: the last ones, or those named."""

    def __init__(self, layers: int, named: tuple[int, ...] | None = None) -> None:
        self.layers, self.named = layers, named

    def of(self, depth: int) -> tuple[int, ...]:
        """In an encoder of `depth` blocks.

        Raises:
            ValueError: if it has not as many.
        """
        if self.named is not None:
            return Backbone(blocks=self.named).outputs(depth)
        if self.layers > depth:
            raise ValueError(f"layers={self.layers}, and the encoder has {depth} blocks")
        return tuple(range(depth - self.layers, depth))


def frozen_encoder(
    config: LinearSegmentationConfig | PatchKnnConfig, blocks: Blocks, device: torch.device
) -> tuple[FrozenEncoder, EncoderInfo | None]:
    """The encoder of `config` as it is, with its final norm if it has one.

    Raises:
        FileNotFoundError, ValueError: as `build_backbone`.
    """
    backbone, info, _ = build_backbone(
        config.checkpoint,
        config.encoder,
        AS_IT_IS,
        blocks.of,
        image=config.image,
        allow_partial=config.allow_partial,
        frozen=True,
    )
    return FrozenEncoder(backbone, device, autocast_dtype(config.compute, device)), info


def run(config: LinearSegmentationConfig, run: RunDir) -> Outcome:
    """Train a head and evaluate it.

    Raises:
        FileNotFoundError: if the data set or the checkpoint is not there.
        ValueError: if either is not what it should be, or the loss becomes NaN.
    """
    device = setup_process(config.compute, config.seed)
    directory = locate(config.data)
    val = open_split(directory, "val")
    encoder, info = frozen_encoder(config, Blocks(config.layers, config.blocks), device)
    mean, std = image_statistics(config.pixels, info)
    seed_all(config.seed)  # the head is the same whatever came before
    head = LinearHead(
        encoder.width, len(val.classes), norm=config.norm, dropout=config.dropout, loss_over=config.loss_over
    )
    evaluation = evaluation_of(config, val, device, run.path, PREFIX)
    trained = train(
        run,
        Training(
            model=head,
            optimizer=adamw(_groups(config, head), config.lr, BETAS),
            batches=training_batches(
                config, open_split(directory, "train"), prepare=partial(_encoded, encoder, mean, std)
            ),
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
        "encoder": asdict(info.vit if info else config.encoder),
        "weights": f"{info.family} checkpoint" if info else "random",
        "final_norm": info is not None and info.final_norm,
        "blocks": list(encoder.backbone.outputs),
        "head": f"{'batch norm, ' if config.norm == 'batch' else ''}1x1 convolution, dropout {config.dropout:g}",
        "pixels": [list(mean), list(std)],
        **{name: getattr(config, name) for name in ("image", "steps", "batch", "lr", "schedule", "loss_over", "seed")},
        **data_facts(val),
        **inference_facts(config),
    }
    return Outcome(
        metrics=trained.metrics,
        facts=facts,
        images_per_second=trained.images_per_second,
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=info.family if info else None,
    )


def _groups(config: LinearSegmentationConfig, head: LinearHead) -> list[dict[str, Any]]:
    decayed = [p for p in head.parameters() if config.decay_all or p.ndim > 1]
    spared = [p for p in head.parameters() if not (config.decay_all or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _as_head(model: Any) -> LinearHead:
    assert isinstance(model, LinearHead)
    return model


def _encoded(encoder: FrozenEncoder, mean: RGB, std: RGB, batch: dict[str, Any]) -> dict[str, Tensor]:
    """A batch of images as features."""
    batch = move(batch, encoder.device)
    return {"features": encoder(prepared(batch["images"], batch["sizes"], mean, std)), "labels": batch["labels"]}
