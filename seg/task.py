"""The task of segmentation: what the rest of mimbench knows of this folder (engine/run/task.py). Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.task import (
    CardEntry,
    Categories,
    DataKind,
    Input,
    Memory,
    Metric,
    Picture,
    Protocol,
    Quantity,
    Reads,
    Spread,
    Task,
)

if TYPE_CHECKING:
    from mimbench.engine.data.datasets import Report
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir

MIOU = Quantity("mean IoU")
ACCURACY = Quantity("pixel accuracy")


def _configs() -> Mapping[str, type[Any]]:
    from mimbench.seg.config import LinearSegmentationConfig, PatchKnnConfig, PatchLogisticConfig, UPerNetConfig

    kinds = (UPerNetConfig, LinearSegmentationConfig, PatchKnnConfig, PatchLogisticConfig)
    return {kind.__name__: kind for kind in kinds}


def _run(config: Any, run: RunDir) -> Outcome:
    from mimbench.seg.run import run as segment

    return segment(config, run)


def _load() -> None:
    import mimbench.seg.run  # noqa: F401
    from mimbench.engine.training.train import load_libraries

    load_libraries()


def _recipes() -> Iterable[ModuleType]:
    from mimbench.seg.recipes import frozen, upernet

    return upernet, frozen


def _cost(config: Any) -> Cost | None:
    from mimbench.seg.cost import cost

    return cost(config)


def _reads(config: Any) -> Reads:
    from mimbench.seg.data.parts import label_map_parts

    return Reads("train and val label maps", label_map_parts)


def _check(directory: Path, kind: str) -> Report:
    from mimbench.seg.data.check import check_segmentation

    return check_segmentation(directory)


def _intervals(run: RunDir, draws: int) -> tuple[dict[str, Spread], int]:
    from mimbench.seg.evaluation.bootstrap import intervals

    return intervals(run, draws)


def _estimate(config: Any, gpus: int) -> Any:
    from mimbench.seg.memory import estimate

    return estimate(_trained(config), gpus)


def _advice(config: Any, free: int, gpus: int) -> str | None:
    from mimbench.seg.config import UPerNetConfig
    from mimbench.seg.memory import advice

    return advice(config, free, gpus) if isinstance(config, UPerNetConfig) else None


def _trained(config: Any) -> Any:
    from mimbench.seg.config import UPerNetConfig

    if not isinstance(config, UPerNetConfig):
        raise ValueError("GPU memory is estimated for UperNet; a frozen encoder needs little more than its weights")
    return config


def _encoder_of_segmenter(found: Any) -> Any:
    from mimbench.seg.model.build import encoder_of

    return encoder_of(found)


TASK = Task(
    name="seg",
    title="segmentation",
    order=40,
    configs=_configs,
    run=_run,
    load=_load,
    recipes=_recipes,
    protocols=(
        Protocol("ade20k", {"B": "seg/upernet_vitb", "L": "seg/upernet_vitl"}, "seg/upernet_handwritten"),
        Protocol("seg_linear", "seg/linear_dinov2", "seg/linear_handwritten"),
        Protocol("seg_knn", "seg/knn_capi", "seg/knn_handwritten"),
        Protocol("seg_logistic", "seg/logistic_capi", "seg/logistic_handwritten"),
    ),
    data=("ade", "ade20k"),
    reads=_reads,
    takes="segmenter",
    input=Input(whole=_encoder_of_segmenter),
    metrics=(
        Metric("miou", "mIoU", MIOU, column="measured", curve="mIoU (%)", by_cost=True),
        Metric("macc", "mAcc", ACCURACY, column="never", headline=False),
        Metric("aacc", "aAcc", ACCURACY, column="never", headline=False),
        Metric("seg_linear_miou", "linear mIoU", MIOU, column="measured", curve="linear mIoU (%)"),
        Metric("seg_knn_miou", "patch k-NN mIoU", MIOU, column="measured"),
        Metric("seg_logistic_miou", "patch logistic mIoU", MIOU, column="measured"),
    ),
    measures=("miou", "macc", "aacc", "seg_linear_", "seg_knn_", "seg_logistic_"),
    counts="steps",
    glossary=(
        (
            "mIoU",
            "Intersection over union of predicted and annotated pixels, averaged over classes. UperNet and the encoder "
            "are trained together; the metric is mmsegmentation's, at the images' original size.",
        ),
        ("linear mIoU", "The mean IoU of one linear layer on the patch features of the frozen encoder."),
        (
            "patch k-NN mIoU",
            "Pixels get the labels of the most similar training patches; nothing is trained. The metric is CAPI's own; "
            "do not compare it with other mIoU.",
        ),
    ),
    pictures=(
        Picture("segmentations", "Segmentations", "Validation images with ground truth and prediction."),
        Picture(
            "worst_segmentations",
            "Worst segmentations",
            "The validation images with the lowest fraction of correct pixels, with ground truth and prediction.",
        ),
        Picture(
            "confusion",
            "Confused classes",
            "The percentage of each class's pixels predicted as each class; the most frequent classes.",
        ),
    ),
    categories=Categories("classes.json", "iou", "IoU"),
    card=(
        CardEntry("miou", "image-segmentation", "UperNet, mIoU"),
        CardEntry("seg_linear_miou", "image-segmentation", "Linear segmentation, mIoU"),
        CardEntry("seg_knn_miou", "image-segmentation", "Patch k-NN, mIoU (CAPI's rule)"),
        CardEntry("seg_logistic_miou", "image-segmentation", "Patch logistic regression, mIoU (CAPI's rule)"),
    ),
    settings=("data", "steps", "batch", "image", "lr", "layer_decay", "backbone.rel_pos"),
    kinds=(DataKind("seg", _check),),
    cost=_cost,
    memory=Memory(_estimate, _advice),
    intervals=_intervals,
)
