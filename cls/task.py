"""Classification as a task: what `mimbench` needs to know of this folder (engine/run/task.py). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.task import ANY, CardEntry, DataKind, Embedding, Metric, Protocol, Quantity, Reads, Task

if TYPE_CHECKING:
    from mimbench.engine.data.datasets import Report
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir

TOP1 = Quantity("top-1 accuracy", short="top-1 %")
SIZES = "SBLH"  # encoder sizes with a fine-tuning recipe
LINEAR = {"S": "cls/linear_vits", "B": "cls/linear_vitb", ANY: "cls/linear"}
LABELLED = ("imagenet", "images", "tiny-imagenet", "cifar10", "cifar100", "inaturalist2019", "places365")
ROBUSTNESS = ("imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-c")


def _configs() -> Mapping[str, type[Any]]:
    from mimbench.cls.config import Classify, FastLinear, FewShot, Finetune, Knn, Linear

    return {kind.__name__: kind for kind in (Finetune, Linear, Knn, FastLinear, FewShot, Classify)}


def _run(config: Any, run: RunDir) -> Outcome:
    from mimbench.cls.run import run as evaluate

    return evaluate(config, run)


def _load() -> None:
    import mimbench.cls.run  # noqa: F401
    from mimbench.engine.training.train import load_libraries

    load_libraries()


def _recipes() -> Iterable[ModuleType]:
    from mimbench.cls.recipes import amt, frozen, maskalign, published

    return published, frozen, maskalign, amt


def _cost(config: Any) -> Cost | None:
    from mimbench.cls.cost import cost

    return cost(config)


def _reads(config: Any) -> Reads:
    from mimbench.engine.data.layouts.parts import image_parts

    return Reads("train and val images", lambda root: image_parts(root, ("train", "val")))


def _check_images(directory: Path, kind: str) -> Report:
    from mimbench.cls.data.check import check_images

    return check_images(directory, kind)


def _check_robustness(directory: Path, kind: str) -> Report:
    from mimbench.cls.data.check_robustness import check_robustness

    return check_robustness(directory, kind)  # type: ignore[arg-type]  # one of ROBUSTNESS


def _embed(asked: Embedding) -> dict[str, Any]:
    from mimbench.cls.frozen.embed import embed

    return embed(asked)


TASK = Task(
    name="cls",
    title="classification",
    order=20,
    configs=_configs,
    run=_run,
    load=_load,
    recipes=_recipes,
    embed=_embed,
    protocols=(
        Protocol("knn", "cls/knn", "cls/knn_handwritten", example=True),
        Protocol("linear", LINEAR, "cls/linear_handwritten", example=True),
        Protocol("linear_fast", "cls/linear_fast", "cls/linear_fast_handwritten"),
        Protocol("fewshot", "cls/fewshot", "cls/fewshot_handwritten"),
        Protocol("finetune", {size: f"cls/finetune_vit{size.lower()}" for size in SIZES}, "cls/finetune_handwritten"),
    ),
    data=("imagenet",),
    reads=_reads,
    leaves="classifier",
    metrics=(
        Metric("knn_top1", "k-NN", TOP1, curve="k-NN top-1 (%)"),
        Metric("fewshot5_ridge_top1", "5-shot", TOP1, column="measured"),
        Metric("linear_fast_top1", "fast linear", TOP1, column="measured"),
        Metric("linear_top1", "linear", TOP1, curve="linear probe top-1 (%)"),
        Metric("finetune_top1", "fine-tune", TOP1, curve="fine-tune top-1 (%)"),
        Metric("val_top1", "classifier", TOP1, column="never"),
    ),
    measures=("finetune_", "linear_", "knn_", "fewshot_"),
    best_epoch=("finetune_", "finetune_best_"),
    main="finetune_top1",
    seedless=("Knn",),
    glossary=(
        (
            "k-NN",
            "Share of validation images whose nearest training images, by the encoder's features, vote for the right "
            "class. Nothing is trained.",
        ),
        ("linear", "Accuracy of one linear layer trained on the features of the frozen encoder."),
        ("fine-tune", "Accuracy after training encoder and classifier together."),
    ),
    card=(
        CardEntry("finetune_top1", "image-classification", "Fine-tuning, top-1"),
        CardEntry("finetune_best_top1", "image-classification", "Fine-tuning, top-1 of the best epoch"),
        CardEntry("linear_top1", "image-classification", "Linear probe, top-1"),
        CardEntry("knn_top1", "image-classification", "k-NN, top-1"),
    ),
    settings=("data", "epochs", "batch", "pool", "norm", "image", "k"),
    kinds=(
        *(DataKind(name, _check_images) for name in LABELLED),
        *(DataKind(name, _check_robustness) for name in ROBUSTNESS),
    ),
    cost=_cost,
)
