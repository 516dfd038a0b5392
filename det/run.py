"""Train and evaluate a detector: `mimbench run det/...` calls `run(config, run)`.

Reads a COCO-style data set and, if given, a checkpoint. Writes metrics and training states
(engine/training/train.py), predictions.json (every detection on the validation split, in COCO's results form),
categories.json (ids, names and AP) into the run directory, and, after the result, plots/ (detections, the worst images,
precision-recall curves, kinds of errors). The returned metrics are pycocotools' on these predictions.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from mimbench.backbones.checkpoint import EncoderInfo
from mimbench.backbones.config import Traits, vitdet_window
from mimbench.det.config import MaskRCNNConfig, ViTDetConfig
from mimbench.det.data.batches import TrainingImages, training_batch
from mimbench.det.data.categories import category_findings
from mimbench.det.data.coco import CocoSplit, read_split
from mimbench.det.data.repeats import RepeatedBatches, repeat_factors
from mimbench.det.data.splits import categories_of, same_categories, shared_images
from mimbench.det.detectron2.run import Within, train_within
from mimbench.det.evaluation.draw import draw_detections, least_drawn, worst_first
from mimbench.det.evaluation.draw_scores import draw_curves, draw_errors
from mimbench.det.evaluation.errors import breakdown
from mimbench.det.evaluation.results import Results
from mimbench.det.evaluation.validate import Evaluation
from mimbench.det.memory import require_memory
from mimbench.det.model.as_stored import Stored, as_stored
from mimbench.det.model.build import WHOLE, build_detector
from mimbench.det.model.detector_file import save_detector
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.optim import learning_rate, optimizer
from mimbench.engine.data.batches import Batches
from mimbench.engine.data.datasets import locate, require
from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.process import device_name, peak_memory, rank_and_world, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.compiling import compile_parts
from mimbench.engine.training.train import Trained, Training, train

log = logging.getLogger(__name__)


def run(config: MaskRCNNConfig, run: RunDir) -> Outcome:
    """Train the detector of `config` in the directory `run` and evaluate it.

    Raises:
        FileNotFoundError: if the data or the checkpoint does not exist.
        ValueError: if data, checkpoint or settings cannot be used, or the loss is not finite.
    """
    device = setup_process(config.compute, config.seed)
    stored = as_stored(config, run.read_about()["recipe"]) if config.steps == 0 else Stored(config, None)
    config = stored.config
    directory = locate(config.data)
    train_split, val_split = (
        read_split(directory, split, config.single_class, masks=config.heads.masks, benchmark=config.benchmark)
        for split in ("train", "val")
    )
    require(same_categories(train_split, val_split))
    if stored.categories is not None:
        require(category_findings(stored.categories, categories_of(val_split)))
    validation = shared_images(train_split, val_split)
    model, info = build_detector(config, len(train_split.categories), train_split.images_showing().tolist())
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        require_memory(config, info.vit if info else config.encoder, rank_and_world()[1], free)
    if config.compile and config.engine == "mimbench":
        compile_parts(model.compilable())
    images = TrainingImages(train_split, config.augment, config.image, config.heads.masks)
    evaluation = Evaluation(config, val_split, device)
    trained: Trained | Within | None = None
    if config.steps == 0:
        metrics = _as_it_is(config, info, model, evaluation)
    elif config.engine == "detectron2":
        trained = train_within(config, model, (train_split, val_split), run.path / "detectron2", device)
        evaluation.results = Results.of(trained.results)
        metrics = evaluation.of_record() | evaluation.named(trained.metrics)
    else:
        trained = train(run, _training(config, model, images, evaluation))
        metrics = evaluation.of_record()
    if rank_and_world()[0] == 0:
        if trained is not None:
            save_detector(run.detector, model, config, train_split.category_ids, train_split.categories)
        _write(run, evaluation)
    draws = rank_and_world()[0] == 0 and config.shown
    evaluated = stored.facts() if config.steps == 0 else {}
    return Outcome(
        metrics=metrics,
        facts={**_facts(config, info, images, val_split), "validation": validation, **evaluated},
        images_per_second=trained.images_per_second if trained else None,
        loading=trained.loading if trained else None,
        peak_memory=trained.peak_memory if trained else peak_memory(device),
        device=device_name(device),
        family=info.family if info else None,
        pictures=partial(_draw, run, config, evaluation) if draws else None,
    )


def _as_it_is(
    config: MaskRCNNConfig, info: EncoderInfo | None, model: MaskRCNN, evaluation: Evaluation
) -> dict[str, float]:
    """Return the metrics of a checkpoint that is a whole detector, without training."""
    if info is None or info.family != WHOLE:
        raise ValueError(
            f"steps=0 evaluates a whole detector, but {config.checkpoint} is not one; name a detector or set steps"
        )
    evaluation(model.to(evaluation.device).eval())
    return evaluation.of_record()


def _write(run: RunDir, evaluation: Evaluation) -> None:
    """Write the results and the metrics of each category into the run directory."""
    split, results = evaluation.split, evaluation.results
    results.write(run.path / "predictions.json")
    each = zip(split.category_ids, split.categories, evaluation.metrics.of_each(), strict=True)
    categories = [{"id": identity, "name": name, **aps} for identity, name, aps in each]
    write_text(run.path / "categories.json", json.dumps(categories, indent=1))


def _draw(run: RunDir, config: MaskRCNNConfig, evaluation: Evaluation) -> None:
    """Write plots into the run directory."""
    split, results = evaluation.split, evaluation.results
    draw_curves(evaluation.metrics.precision, run.plots / "precision_recall.png")
    draw_detections(split, results, run.plots / "detections.png", config.shown)
    if config.benchmark == "coco":  # LVIS does not annotate every object
        found = breakdown(split, results)
        draw_errors(found, run.plots / "errors.png")
        worst = worst_first(found.images, least_drawn(results))
        draw_detections(split, results, run.plots / "worst.png", config.shown, worst)


def _training(config: MaskRCNNConfig, model: MaskRCNN, images: TrainingImages, evaluation: Evaluation) -> Training:
    _, world = rank_and_world()
    parts = world * config.compute.accumulate
    if config.batch % parts:
        raise ValueError(f"batch={config.batch} must be a multiple of processes x compute.accumulate = {parts}")
    if config.loss_weights == "batch" and parts > 1:
        raise ValueError(
            f"loss_weights=batch needs the whole batch at once, not {parts} parts; use loss_weights=image, which does "
            "not depend on the division of the batch"
        )
    return Training(
        model=model,
        optimizer=optimizer(model, config, depth=len(model.backbone.net.blocks)),
        batches=_batches(config, images, config.batch // parts),
        steps=config.steps,
        learning_rate=partial(learning_rate, config),
        compute=config.compute,
        seed=config.seed,
        grad_clip=config.grad_clip,
        evaluate=evaluation,
        evaluate_every=config.evaluate_every,
    )


def _batches(config: MaskRCNNConfig, images: TrainingImages, batch: int) -> Batches:
    """Return batches of `batch` images; images of rare categories are repeated if `config.repeat` is set."""
    compute = config.compute
    if config.repeat is None:
        return Batches(
            images, batch, config.seed,
            accumulate=compute.accumulate, collate=training_batch, workers=compute.workers,
        )  # fmt: skip
    factors = repeat_factors(images.split, torch.from_numpy(images.images), config.repeat)
    return RepeatedBatches(
        images, factors, batch, config.seed,
        accumulate=compute.accumulate, collate=training_batch, workers=compute.workers,
    )  # fmt: skip


def _positions(traits: Traits, vitdet: ViTDetConfig, info: EncoderInfo | None) -> str:
    """Return the description of how the encoder's positions are used."""
    if traits.positions == "relative":
        return f"a table for each pair of patches, stretched ({vitdet.relative_resize})"
    said = [] if traits.windows is None else ["decomposed relative ones, the encoder's own"]
    if traits.rotary:
        said.append(f"rotary, counted from the {vitdet.rope_windows}")
    learned = "as pretrained" if vitdet.frozen else "learned further"
    how = "bicubic" if traits.mae_like or info is None else info.interpolation
    if traits.positions == "absolute" and vitdet.positions == "tile":
        said.append(f"{learned}, tiled")
    elif traits.positions == "absolute" and how == "regenerate":
        said.append("computed for each grid, not learned")
    elif traits.positions == "absolute":
        way = {"bicubic": "bicubically without antialiasing"}.get(how, f"by {how}")
        said.append(f"{learned}, resized {way}")
    return "; ".join(said) or "none"


def _facts(
    config: MaskRCNNConfig, info: EncoderInfo | None, images: TrainingImages, val_split: CocoSplit
) -> dict[str, Any]:
    """Return the facts that change the numbers, besides the weights."""
    shape = config.shape_for(info.vit if info else config.encoder)
    traits, vitdet = info.traits if info else Traits(), config.vitdet
    return {
        "encoder": asdict(info.vit if info else config.encoder),
        "image": config.image,
        "rel_pos": (config.vitdet.rel_pos and not config.vitdet.frozen) or traits.windows is not None,
        "frozen": config.vitdet.frozen,
        "layer": config.vitdet.layer,
        "window": vitdet.window or vitdet_window(shape, traits, config.image),
        "prefix": vitdet.prefix,
        "positions": _positions(traits, vitdet, info),
        "patch": shape.patch,
        "patch_resampled": info is not None and info.vit.patch != shape.patch,
        "weights": f"{info.family} checkpoint" if info else "random",
        "final_norm": vitdet.norm == "own",
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
        "normalise": config.loss_weights,
        "engine": config.engine,
        "heads": "cascade" if config.heads.cascade else "standard",
        "class_loss": config.heads.class_loss,
        "soft_nms": config.heads.soft_nms,
        "views": [list(config.test_time_augmentation.sizes), config.test_time_augmentation.flip],
        "evaluator": "hotcoco, LVIS rules" if config.benchmark == "lvis" else "pycocotools",
        "evaluate_precision": config.evaluate_precision,
        "seed": config.seed,
    }
