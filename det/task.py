"""Detection as a task: what `mimbench` needs to know of this folder (engine/run/task.py). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.task import (
    CardEntry,
    Categories,
    Choice,
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
    Spread,
    Task,
)

if TYPE_CHECKING:
    from mimbench.engine.data.datasets import Report
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir

AP = Quantity("average precision")
OTHERS = {  # protocols beside the published one, by what the names of their metrics begin with (det/config.py)
    "frozen_12ep_": "frozen 12 ep",
    "frozen_25ep_": "frozen 25 ep",
    "frozen_36ep_": "frozen 36 ep",
    "frozen_": "frozen",
    "layer_probe_15ep_": "layer probe 15 ep",
    "layer_probe_": "layer probe",
    "short_12ep_": "12 ep",
    "short_25ep_": "25 ep",
    "short_36ep_": "36 ep",
    "short_50ep_": "50 ep",
}


def _other(prefix: str, title: str) -> tuple[Metric, Metric]:
    """Return box AP and mask AP of one of `OTHERS`."""
    return (
        Metric(f"{prefix}box_ap", f"box AP, {title}", AP, column="measured", curve=f"box AP, {title} (%)"),
        Metric(f"{prefix}mask_ap", f"mask AP, {title}", AP, column="measured", curve=f"mask AP, {title} (%)"),
    )


def _configs() -> Mapping[str, type[Any]]:
    from mimbench.det.config import MaskRCNNConfig

    return {"MaskRCNN": MaskRCNNConfig}


def _run(config: Any, run: RunDir) -> Outcome:
    from mimbench.det.run import run as detect

    return detect(config, run)


def _load() -> None:
    import mimbench.det.run  # noqa: F401
    from mimbench.engine.training.train import load_libraries

    load_libraries()


def _recipes() -> Iterable[ModuleType]:
    from mimbench.det.recipes import (
        frozen,
        lvis,
        machines,
        mask_rcnn,
        perception_encoder,
        perception_encoder_lvis,
        scaled,
        shorter,
        variants,
    )

    return (
        mask_rcnn,
        shorter,
        frozen,
        machines,
        variants,
        scaled,
        lvis,
        perception_encoder,
        perception_encoder_lvis,
    )


def _choose(vit: Any, about: Any) -> Choice:
    from mimbench.det.choice import coco

    return coco(vit, about)


def _plan(vit: Any, about: Any) -> tuple[str, ...]:
    from mimbench.det.choice import coco_plan

    return coco_plan(vit, about)


def _choose_frozen(vit: Any, about: Any) -> Choice:
    from mimbench.det.choice import coco_frozen

    return coco_frozen(vit, about)


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


def _intervals(run: RunDir, draws: int) -> tuple[dict[str, Spread], int]:
    from mimbench.det.evaluation.bootstrap import intervals

    return intervals(run, draws)


def _lazyconfig(config: Any, out: Path) -> None:
    from mimbench.det.detectron2.run import lazyconfig_of

    lazyconfig_of(config, out)


TASK = Task(
    name="det",
    title="detection",
    order=30,
    configs=_configs,
    run=_run,
    load=_load,
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
            choose=_choose,
            plan=_plan,
        ),
        Protocol("coco_frozen", "det/mask_rcnn_frozen_12ep", "det/mask_rcnn_frozen_handwritten", choose=_choose_frozen),
        Protocol("coco_layer_probe", "det/mask_rcnn_layer_probe_15ep"),
    ),
    data=("coco",),
    reads=_reads,
    takes="detector",
    leaves="detector",
    input=Input(whole=_encoder_of_detector, refusal=_refusal),
    metrics=(
        Metric("box_ap", "box AP", AP, curve="box AP (%)", by_cost=True),
        Metric("mask_ap", "mask AP", AP, curve="mask AP (%)"),
        *(metric for prefix, title in OTHERS.items() for metric in _other(prefix, title)),
    ),
    measures=("box_ap", "mask_ap", "frozen_", "layer_probe_", "short_"),
    counts="steps",
    glossary=(
        (
            "box AP, mask AP",
            "COCO average precision of Mask R-CNN on the encoder: boxes and outlines, averaged over overlaps from 0.5 "
            "to 0.95.",
        ),
        ("frozen", "The same with a frozen encoder: only the pyramid and the heads are trained."),
        ("layer probe", "The same on one layer of a frozen encoder that sees the image in windows only."),
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
        CardEntry("frozen_12ep_box_ap", "object-detection", "Mask R-CNN on the frozen encoder, 12 epochs, box AP"),
        CardEntry("frozen_12ep_mask_ap", "image-segmentation", "Mask R-CNN on the frozen encoder, 12 epochs, mask AP"),
    ),
    settings=("data", "steps", "batch", "image", "vitdet.rel_pos"),
    kinds=(DataKind("coco", _check_coco),),
    cost=_cost,
    memory=Memory(_estimate, _advice),
    doctor=_doctor,
    counting=Counting(_counted, _count, _told_by, _label),
    predict=_predict,
    lazyconfig=_lazyconfig,
    intervals=_intervals,
)
