"""Train UperNet end to end and evaluate it: `mimbench run seg/upernet_...`.

Reads a data set with label maps and, if given, an encoder. Writes into the run directory: metrics and training states
(engine/training/train.py), segmenter.pth (all weights, with mmsegmentation's names), classes.json (IoU and accuracy of
each class), plots/ (images with ground truth and prediction, the worst of them, confused classes) and, with
`save_predictions`, predictions/.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mimbench.engine.data.batches import Batches
from mimbench.engine.data.datasets import locate
from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.process import autocast_dtype, device_name, peak_memory, rank_and_world, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.compiling import compile_parts
from mimbench.engine.training.train import Trained, Training, train
from mimbench.seg.config import LinearSegmentationConfig, UPerNetConfig
from mimbench.seg.data.batches import TrainingCrops, collate
from mimbench.seg.data.split import LabelledSplit, open_labelled, require_usable, shared_images
from mimbench.seg.evaluation.draw import draw_confusion, draw_segmentations
from mimbench.seg.evaluation.evaluate import Evaluation
from mimbench.seg.evaluation.inference import require_views
from mimbench.seg.memory import require_memory
from mimbench.seg.model.build import WHOLE, Built, build_segmenter
from mimbench.seg.model.segmenter_file import save_segmenter
from mimbench.seg.optim import learning_rate, optimizer

SEGMENTER = "segmenter.pth"  # in the run directory


def run(config: UPerNetConfig, run: RunDir) -> Outcome:
    """Train the segmenter of `config` in the directory `run` and evaluate it: `miou`, `macc`, `aacc`, percent.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data, the checkpoint or the settings are invalid, or the loss is not finite.
    """
    device = setup_process(config.compute, config.seed)
    directory = locate(config.data)
    val = open_labelled(directory, "val", background=config.background)
    built = build_segmenter(config, len(val.classes))
    fits = partial(require_views, built.model, config=config.inference, side=config.image)
    fits(val.image(0).shape[:2])
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        require_memory(config, built.info.vit if built.info else config.encoder, rank_and_world()[1], free)
    if config.compile:
        compile_parts(built.model.compilable())
    evaluation = evaluation_of(config, val, device, run.path)
    trained: Trained | None = None
    if config.steps == 0:
        metrics = _as_it_is(config, built, evaluation)
    else:
        require_usable(val, fits)
        training = _training(config, built, open_labelled(directory, "train", background=config.background), evaluation)
        trained = train(run, training)
        metrics = trained.metrics
    if rank_and_world()[0] == 0:
        if trained is not None:
            save_segmenter(run.path / SEGMENTER, built.model, built.description(config, val.classes))
        write_results(run, evaluation)
    return Outcome(
        metrics=metrics,
        facts=_facts(config, built, val),
        images_per_second=trained.images_per_second if trained else None,
        loading=trained.loading if trained else None,
        peak_memory=trained.peak_memory if trained else peak_memory(device),
        device=device_name(device),
        family=built.info.family if built.info else None,
    )


def evaluation_of(
    config: UPerNetConfig | LinearSegmentationConfig,
    val: LabelledSplit,
    device: torch.device,
    path: Path,
    prefix: str = "",
) -> Evaluation:
    """Return the evaluation of a model on the validation split, in the precision of training."""
    return Evaluation(
        val,
        config.inference,
        config.image,
        device,
        workers=config.compute.workers,
        prefix=prefix,
        shown=config.shown,
        precision=autocast_dtype(config.compute, device),
        predictions=path / "predictions" if config.save_predictions else None,
    )


def _as_it_is(config: UPerNetConfig, built: Built, evaluation: Evaluation) -> dict[str, float]:
    if built.info is None or built.info.family != WHOLE:
        raise ValueError(f"steps=0 evaluates a whole segmenter, but {config.checkpoint} is not one")
    return evaluation(built.model.to(evaluation.device).eval())


def micro_batch(config: UPerNetConfig | LinearSegmentationConfig) -> int:
    """Return the number of images that one process takes at a time.

    Raises:
        ValueError: if the batch cannot be divided evenly, or batch norm would get a single image.
    """
    _, world = rank_and_world()
    parts = world * config.compute.accumulate
    if config.batch % parts:
        raise ValueError(f"batch={config.batch} must be a multiple of processes x compute.accumulate = {parts}")
    if config.batch // config.compute.accumulate < 2:
        raise ValueError(
            f"batch={config.batch} with compute.accumulate={config.compute.accumulate} gives batch norm one image at a "
            "time, but it needs two; lower compute.accumulate"
        )
    return config.batch // parts


def training_batches(
    config: UPerNetConfig | LinearSegmentationConfig, train_split: LabelledSplit, **options: Any
) -> Batches:
    """Return batches of random crops."""
    return Batches(
        TrainingCrops(train_split, config.augment, config.image),
        micro_batch(config),
        config.seed,
        accumulate=config.compute.accumulate,
        collate=collate(config.image),
        workers=config.compute.workers,
        **options,
    )


def _training(config: UPerNetConfig, built: Built, train_split: LabelledSplit, evaluation: Evaluation) -> Training:
    return Training(
        model=built.model,
        optimizer=optimizer(built.model, config.lr, config.weight_decay, config.layer_decay, built.depth),
        batches=training_batches(config, train_split),
        steps=config.steps,
        learning_rate=partial(
            learning_rate, peak=config.lr, steps=config.steps, warmup=config.warmup, schedule=config.schedule
        ),
        compute=config.compute,
        seed=config.seed,
        grad_clip=config.grad_clip,
        evaluate=evaluation,
        evaluate_every=config.evaluate_every,
    )


def write_results(run: RunDir, evaluation: Evaluation) -> None:
    """Write the IoU of each class and pictures into the run directory."""
    split = evaluation.split
    write_text(run.path / "classes.json", json.dumps(evaluation.confusion.of_each(split.classes), indent=1))
    if not evaluation.shown:
        return
    draw_segmentations(split, evaluation.kept, evaluation.chosen, run.plots / "segmentations.png")
    draw_segmentations(split, evaluation.kept, evaluation.worst, run.plots / "worst_segmentations.png")
    draw_confusion(evaluation.confusion, split.classes, run.plots / "confusion.png")


def data_facts(val: LabelledSplit) -> dict[str, Any]:
    """Return the facts about the data that affect the numbers."""
    validation = shared_images(val)
    return {
        "data_layout": val.layout.name, "classes": len(val.classes), "val_images": len(val), "validation": validation
    }  # fmt: skip


def inference_facts(config: UPerNetConfig | LinearSegmentationConfig) -> dict[str, Any]:
    """Return the facts about inference that affect the numbers."""
    inference = config.inference
    several = len(inference.scales) > 1 or inference.flip
    return {
        "inference": inference.mode,
        "stride": inference.stride or int(config.image * 2 / 3) if inference.mode == "slide" else None,
        "views": [list(inference.scales), inference.flip, inference.scaling] if several else "single scale",
        "metric": "mIoU as mmsegmentation 1.2.2, at the original size",
        "resizing": "Pillow, antialiased" if inference.resizing == "pillow" else "OpenCV, no antialiasing",
    }


def _facts(config: UPerNetConfig, built: Built, val: LabelledSplit) -> dict[str, Any]:
    """Return the facts that affect the numbers, other than the weights."""
    info, loaded = built.info, built.loaded
    return {
        "protocol": "UperNet, BEiT's segmentation code",
        "encoder": asdict(info.vit if info else config.encoder),
        "weights": f"{info.family} checkpoint" if info else "random",
        "partial": list(info.partial) if info else [],
        "copy": info.copy if info else None,
        "missing": len(loaded.missing) if loaded else None,
        "unexpected": list(loaded.unexpected) if loaded else None,
        "blocks": list(built.model.backbone.outputs),
        "final_norm": config.backbone.final_norm,
        "rel_pos": built.model.backbone.grid is not None,
        "pixels": [list(built.model.mean), list(built.model.std)],
        "image": config.image,
        "steps": config.steps,
        "batch": config.batch,
        "lr": config.lr,
        "layer_decay": config.layer_decay,
        "schedule": config.schedule,
        "loss_over": config.heads.loss_over,
        "batch_norm": f"over {config.batch // config.compute.accumulate} images",
        **data_facts(val),
        **inference_facts(config),
        "seed": config.seed,
    }
