"""Detection as a task: what `mimbench` needs to know of this folder (engine/run/task.py). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.task import (
    CardEntry,
    Categories,
    Counting,
    DataKind,
    Finding,
    Input,
    Memory,
    Metric,
    Picture,
    Predictor,
    Protocol,
    Quantity,
    Reads,
    Task,
)

if TYPE_CHECKING:
    from mimbench.engine.data.datasets import Report
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir

AP = Quantity("average precision")


def _configs() -> Mapping[str, type[Any]]:
    from mimbench.det.config import MaskRCNNConfig

    return {"MaskRCNN": MaskRCNNConfig}


def _run(config: Any, run: RunDir) -> Outcome:
    from mimbench.det.run import run as detect

    return detect(config, run)


def _recipes() -> Iterable[ModuleType]:
    from mimbench.det.recipes import lvis, machines, mask_rcnn, shorter, variants

    return mask_rcnn, shorter, machines, variants, lvis


def _cost(config: Any) -> Cost | None:
    from mimbench.det.cost import cost

    return cost(config)


def _reads(config: Any) -> Reads:
    from mimbench.det.data.parts import coco_parts

    benchmark = config.benchmark
    return Reads(f"{benchmark}, train and val", lambda root: coco_parts(root, ("train", "val"), benchmark))


def _check_coco(directory: Path, kind: str) -> Report:
    from mimbench.det.data.check import check_coco

    return check_coco(directory)


def _estimate(config: Any, gpus: int) -> Any:
    from mimbench.det.memory import estimate

    return estimate(config, gpus)


def _advice(config: Any, free: int, gpus: int) -> str | None:
    from mimbench.det.memory import advice

    return advice(config, free, gpus)


def _encoder_of_detector(found: Any) -> Any:
    from mimbench.det.model.detector_config import encoder_of

    return encoder_of(found)[0]


def _refusal(traits: Any) -> str | None:
    from mimbench.backbones.vitdet import vitdet_reason

    return vitdet_reason(traits)


def _doctor() -> Iterator[Finding]:
    import importlib.util

    from mimbench.det.detectron2.installed import INSTALL, missing

    lacking = missing()
    if lacking:
        what = f"{', '.join(lacking)} not installed: engine=detectron2 needs it, and nothing else"
        yield Finding("detectron2", "note", what, INSTALL)
        return
    compiled = importlib.util.find_spec("detectron2._C") is not None
    how = "compiled" if compiled else "Python part alone, which is all that ViTDet needs"
    yield Finding("detectron2", "ok", f"there ({how})")


def _counted(sizes: str) -> Iterable[Any]:
    from mimbench.det.counting import detectors

    return detectors(sizes)


def _count(sizes: str) -> int:
    return sum(size in "BLH" for size in sizes)


def _told_by(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    from mimbench.det.cost import COUNTED_AS

    return COUNTED_AS


def _label(told_by: tuple[Any, ...]) -> str:
    return str(told_by[0])


def _predict(source: Path) -> Predictor:
    from mimbench.det.evaluation.predict import predictor

    return predictor(source)


def _lazyconfig(config: Any, out: Path) -> None:
    from mimbench.det.detectron2.run import lazyconfig_of

    lazyconfig_of(config, out)


TASK = Task(
    name="det",
    title="detection",
    order=30,
    configs=_configs,
    run=_run,
    recipes=_recipes,
    protocols=(
        Protocol(
            "coco",
            {
                "B": "det/mask_rcnn_vitdet_b_100ep",
                "L": "det/mask_rcnn_vitdet_l_100ep",
                "H": "det/mask_rcnn_vitdet_h_75ep",
            },
            "det/mask_rcnn_handwritten",
        ),
    ),
    data=("coco",),
    reads=_reads,
    takes="detector",
    leaves="detector",
    input=Input(whole=_encoder_of_detector, refusal=_refusal),
    metrics=(
        Metric("box_ap", "box AP", AP, curve="box AP (%)", by_cost=True),
        Metric("mask_ap", "mask AP", AP, curve="mask AP (%)"),
    ),
    counts="steps",
    glossary=(
        (
            "box AP, mask AP",
            "COCO average precision of Mask R-CNN on the encoder: boxes and outlines, averaged over overlaps from 0.5 "
            "to 0.95.",
        ),
    ),
    pictures=(
        Picture(
            "detections",
            "Detections",
            "Validation images: annotations, beside detected boxes, masks and classes.",
        ),
        Picture(
            "worst",
            "Worst images",
            "The validation images with the worst detections: annotations, beside detections.",
        ),
        Picture(
            "precision_recall",
            "Precision and recall",
            "Mean over categories. A detection counts as correct from the given overlap (IoU) with an annotation on.",
        ),
        Picture(
            "errors",
            "Mistakes of detectors",
            "Box AP50 lost to each kind of mistake, and the number of mistakes. The losses do not add up.",
        ),
    ),
    categories=Categories("categories.json", "box_ap", "Box AP"),
    card=(
        CardEntry("box_ap", "object-detection", "Mask R-CNN, box AP"),
        CardEntry("mask_ap", "image-segmentation", "Mask R-CNN, mask AP"),
    ),
    settings=("data", "steps", "batch", "image", "vitdet.rel_pos"),
    kinds=(DataKind("coco", _check_coco),),
    cost=_cost,
    memory=Memory(_estimate, _advice),
    doctor=_doctor,
    counting=Counting(_counted, _count, _told_by, _label),
    predict=_predict,
    lazyconfig=_lazyconfig,
)
