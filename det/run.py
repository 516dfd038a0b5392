"""Train and evaluate a detector: `run(config, run)` is what `mimbench run det/...` comes down to.

Reads a COCO-style data set and, if there is one, an encoder. Writes metrics and training states (engine/train.py),
predictions.json (every detection on the validation split, in COCO's results form) and plots/detections.png into the
run directory. The metrics returned are pycocotools' on those predictions.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from backbones.checkpoint import EncoderInfo, build_encoder
from backbones.checkpoints.detector import detector_in
from backbones.vitdet import vitdet_reason
from det.batches import TrainingImages, ValidationImages, training_batch, validation_batch
from det.coco import CocoSplit, read_split
from det.config import MaskRCNN as Config
from det.draw import draw_detections
from det.evaluate import CocoMetrics, Result, coco_results
from det.mask_rcnn import MaskRCNN, build_mask_rcnn
from det.optim import learning_rate, optimizer
from det.start import load_detector
from engine.atomic import write_text
from engine.bar import track
from engine.data import Batches, evaluation_loader, move
from engine.datasets import locate
from engine.images import IMAGENET_MEAN, IMAGENET_STD
from engine.process import device_name, rank_and_world, setup_process
from engine.result import Outcome
from engine.rundir import RunDir
from engine.train import Training, train

log = logging.getLogger(__name__)


def run(config: Config, run: RunDir) -> Outcome:
    """Train the detector of `config` in the directory `run` and evaluate it.

    Raises:
        FileNotFoundError: for data or a checkpoint that is not there.
        ValueError: for data, a checkpoint or settings that cannot be used, and for a loss that is not finite.
    """
    device = setup_process(config.compute, config.seed)
    directory = locate(config.data)
    train_split, val_split = (read_split(directory, split, config.single_class) for split in ("train", "val"))
    _same_categories(train_split, val_split)
    model, info = build_detector(config, classes=len(train_split.categories))
    images = TrainingImages(train_split, config.augment, config.image)
    evaluation = Evaluation(config, val_split, device)
    trained = train(run, _training(config, model, images, evaluation))
    metrics = evaluation.of_record()
    if rank_and_world()[0] == 0:
        write_text(run.path / "predictions.json", json.dumps(evaluation.results))
        if config.shown:
            draw_detections(val_split, evaluation.results, run.plots / "detections.png", config.shown)
    return Outcome(
        metrics=metrics,
        facts=_facts(config, info, images, val_split),
        images_per_second=trained.images_per_second,
        peak_memory=trained.peak_memory,
        device=device_name(device),
        family=info.family if info else None,
    )


def build_detector(config: Config, classes: int) -> tuple[MaskRCNN, EncoderInfo | None]:
    """The detector of `config` on its checkpoint's encoder; on a random one if it has none; or its checkpoint itself.

    The random one is what pretraining starts from (fixed sin-cos positions, Xavier), as in every other evaluation: a
    table's scratch row is one encoder. Relative positions, pyramid and heads start from scratch in either case, but for
    a checkpoint that is a whole detector, of which all is taken.

    Raises:
        FileNotFoundError: if the checkpoint is not there.
        ValueError: if it is not one, or its encoder does not fit the detector.
    """
    whole = detector_in(config.checkpoint) if config.checkpoint else None
    partial = config.allow_partial or whole is not None  # what a detector has beyond its encoder is taken below
    encoder, info = build_encoder(config.checkpoint, config.encoder, allow_partial=partial)
    if (reason := vitdet_reason(encoder.traits)) is not None:
        raise ValueError(f"{config.checkpoint}: {reason}")
    shape = config.shape_for(info.vit if info else config.encoder)
    model = build_mask_rcnn(
        classes=classes,
        vit=shape,
        mean=info.mean if info else IMAGENET_MEAN,
        std=info.std if info else IMAGENET_STD,
        image=config.image,
        window=config.vitdet.window,
        global_blocks=config.vitdet.attend_globally(shape.depth),
        rel_pos=config.vitdet.rel_pos,
        drop_path=config.vitdet.drop_path,
        scales=config.vitdet.scales,
        channels=config.vitdet.channels,
        anchor_sizes=config.proposals.anchor_sizes,
        aspect_ratios=config.proposals.anchor_ratios,
        rpn_convs=config.proposals.convs,
        rpn_samples=config.proposals.samples,
        pre_nms=config.proposals.before_nms,
        post_nms=config.proposals.after_nms,
        roi_samples=config.heads.samples,
        head_convs=config.heads.convs,
        head_channels=config.heads.channels,
        fc=config.heads.fc,
        score_threshold=config.heads.score_threshold,
        nms=config.heads.nms,
        top=config.heads.detections,
    )
    model.backbone.net.load_encoder(encoder.state_dict(), encoder.traits)
    if whole is not None and info is not None:
        load_detector(model, whole, str(config.checkpoint))
        info = replace(info, family="detectron2, the whole detector", partial=())
    return model, info


def _training(config: Config, model: MaskRCNN, images: TrainingImages, evaluation: Evaluation) -> Training:
    _, world = rank_and_world()
    parts = world * config.compute.accumulate
    if config.batch % parts:
        raise ValueError(f"batch={config.batch} must be a multiple of processes x compute.accumulate = {parts}")
    batches = Batches(
        images,
        config.batch // parts,
        config.seed,
        accumulate=config.compute.accumulate,
        collate=training_batch,
        workers=config.compute.workers,
    )
    return Training(
        model=model,
        optimizer=optimizer(model, config, depth=len(model.backbone.net.blocks)),
        batches=batches,
        steps=config.steps,
        learning_rate=partial(learning_rate, config),
        compute=config.compute,
        seed=config.seed,
        clip=config.clip,
        evaluate=evaluation,
        evaluate_every=config.evaluate_every,
    )


class Evaluation:
    """Detects on the validation split when called with a model, and keeps the results of the last call."""

    def __init__(self, config: Config, split: CocoSplit, device: torch.device) -> None:
        """Under torchrun each process takes its part of the images; all end up with all results."""
        rank, world = rank_and_world()
        images = ValidationImages(split, config.image, range(rank, len(split), world))
        self.loader = evaluation_loader(images, config.evaluate_batch, config.compute.workers, validation_batch)
        self.split, self.device, self.world = split, device, world
        self.results: list[Result] = []
        self.metrics = CocoMetrics(split.files.annotations, config.single_class)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metrics by the fast evaluator, for the training's curves."""
        assert isinstance(model, MaskRCNN)
        parts: list[Any] = [_detect(model, self)]
        if self.world > 1:
            mine, parts = parts[0], [None] * self.world
            dist.all_gather_object(parts, mine)
        self.results = sorted((result for part in parts for result in part), key=lambda result: result["image_id"])
        return self.metrics(self.results, fast=True)

    def of_record(self) -> dict[str, float]:
        """The same by pycocotools."""
        return self.metrics(self.results)


@torch.no_grad()
def _detect(model: MaskRCNN, evaluation: Evaluation) -> list[Result]:
    split, results = evaluation.split, []
    for images, sizes, indices in track(evaluation.loader, "detecting", len(evaluation.loader)):
        for found, seen, index in zip(
            model.detect(move(images, evaluation.device), sizes), sizes, indices, strict=True
        ):
            size = split.size(index)
            results += coco_results(found.rescaled(seen, size), int(split.image_ids[index]), split.category_ids, size)
    return results


def _same_categories(train_split: CocoSplit, val_split: CocoSplit) -> None:
    for where, one, other in ((val_split, val_split, train_split), (train_split, train_split, val_split)):
        if missing := set(other.category_ids) - set(one.category_ids):
            raise ValueError(
                f"{where.files.annotations} lacks categories that {other.files.annotations.name} has (ids "
                f"{sorted(missing)[:5]}); both splits must list the same"
            )


def _facts(config: Config, info: EncoderInfo | None, images: TrainingImages, val_split: CocoSplit) -> dict[str, Any]:
    """What changes these numbers, besides the weights."""
    shape = config.shape_for(info.vit if info else config.encoder)
    return {
        "encoder": asdict(info.vit if info else config.encoder),
        "image": config.image,
        "rel_pos": config.vitdet.rel_pos,
        "window": config.vitdet.window,
        "positions": "learned further, resized bicubically without antialiasing",
        "patch": shape.patch,
        "patch_resampled": info is not None and info.vit.patch != shape.patch,
        "weights": f"{info.family} checkpoint" if info else "random",
        "final_norm": False,  # ViTDet has none, whatever the encoder brings
        "partial": list(info.partial) if info else [],
        "copy": info.copy if info else None,
        "scales": list(config.vitdet.scales),
        "jitter": [config.augment.smallest, config.augment.largest],
        "flip": config.augment.flip,
        "steps": config.steps,
        "batch": config.batch,
        "epochs": config.steps * config.batch / len(images),
        "train_images": len(images),
        "val_images": len(val_split),
        "classes": len(val_split.categories),
        "single_class": config.single_class,
        "score_threshold": config.heads.score_threshold,
        "detections": config.heads.detections,
        "evaluator": "pycocotools",
        "seed": config.seed,
    }
