"""The pretraining task: what `mimbench` must know about this folder (engine/run/task.py). Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.task import Counting, Curve, Metric, Operations, Picture, Quantity, Reads, Task

if TYPE_CHECKING:
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir


def _configs() -> Mapping[str, type[Any]]:
    from mimbench.pretrain.config import Pretrain

    return {"Pretrain": Pretrain}


def _run(config: Any, run: RunDir) -> Outcome:
    from mimbench.pretrain.run import run as pretrain

    return pretrain(config, run)


def _load() -> None:
    import mimbench.pretrain.run  # noqa: F401
    from mimbench.engine.training.train import load_libraries

    load_libraries()


def _recipes() -> Iterable[ModuleType]:
    from mimbench.pretrain.recipes import amt, crossmae, mae, maskalign

    return crossmae, mae, maskalign, amt


def _cost(config: Any) -> Cost | None:
    from mimbench.pretrain.cost import cost

    return cost(config)


def _reads(config: Any) -> Reads:
    from mimbench.engine.data.layouts.parts import image_parts

    return Reads("train images", lambda root: image_parts(root, ("train",)))  # val images are only looked at


def _throughput(config: Any) -> Any:
    from mimbench.pretrain.throughput import SECONDS, measure

    return measure(config, SECONDS)


def _flops() -> Operations:
    from mimbench.pretrain.flops import shown_table

    return shown_table()


def _module_flops(config: Any, depth: int) -> tuple[dict[str, Any], str]:
    from mimbench.pretrain.flops import method_operations, recipe_table, without_numbers

    by_module, teacher = method_operations(*without_numbers(config))
    return {"modules": by_module, "teacher": teacher}, recipe_table(config, depth)


def _counted(sizes: str) -> Iterable[Any]:
    from mimbench.pretrain.counting import pretraining

    return pretraining(sizes)


def _count(sizes: str) -> int:
    from mimbench.pretrain.counting import wanted

    return len(wanted(sizes))


def _told_by(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    from mimbench.pretrain.counting import told_by

    return told_by(settings)


def _label(told_by: tuple[Any, ...]) -> str:
    from mimbench.pretrain.counting import label

    return label(told_by)


TASK = Task(
    name="pretrain",
    title="pretraining",
    order=10,
    configs=_configs,
    run=_run,
    load=_load,
    recipes=_recipes,
    reads=_reads,
    takes="teacher",
    leaves="encoder",
    metrics=(Metric("loss", "loss", Quantity("loss", unit="", digits=4, better="lower"), column="never"),),
    curves=(
        Curve("val_loss", "loss on validation images"),
        Curve("probe_knn", "k-NN on some images (%)"),
        Curve("feature_rank", "rank of the features"),
    ),
    keeps="keep_encoder_every",
    pictures=(
        Picture(
            "reconstructions",
            "Patches shown to the encoder",
            "Validation images: the original, the patches shown to the encoder, and the weights for drawing them.",
            when=("method.kind", "maskalign"),
        ),
        Picture(
            "reconstructions",
            "Reconstructions",
            "Validation images: the original, the patches shown to the encoder, and the decoder's prediction of the "
            "hidden patches.",
        ),
    ),
    settings=(
        "method.kind", "masking.kind", "masking.mask_ratio", "masking.predict", "data", "epochs", "warmup_epochs",
        "batch", "base_lr", "weight_decay", "encoder.width", "encoder.depth", "encoder.heads", "encoder.patch",
        "encoder.image", "seed",
    ),
    cost=_cost,
    throughput=_throughput,
    flops=_flops,
    module_flops=_module_flops,
    counting=Counting(_counted, _count, _told_by, _label),
)  # fmt: skip
