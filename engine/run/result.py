"""`result.json`: the metrics of a run, and everything about the measurement that can change a number.

A stage returns an `Outcome`; the job runner calls `write_result`, which marks the run as done.

    {"schema": 1, "recipe": ..., "stage": ..., "identity": ..., "data": {"fingerprint", ...} | null,
     "checkpoint": {"path", "hash", "family", "mean", "std", "heads", "activation", "assumed", ...} | null,
     "metrics": {"box_ap": 12.345...}, "facts": {"pool": "avg", ...}, "seconds": ..., "images_per_second": ...,
     "loading": {"workers", "cores", "waiting": share of the time spent waiting for data, ...} | null,
     "device": ..., "peak_memory": bytes, "versions": {...}, "commit": "..." | null, "finished": unix time}

The metrics are named knn_top1, linear_top1, finetune_top1, box_ap, mask_ap (with box_ap50, box_ap75, box_ap_small
and so on), all in percent, and loss for pretraining. There are also knn_top1_k10 and so on for other k,
knn_top1_cls_block11 for other features; linear_fast_top1, linear_fast_held_out_top1 (on the training images used to
select the head) and linear_fast_val_best_top1 (of the better head on the validation split, as papers select it);
fewshot5_ridge_top1 and fewshot5_ridge_std, mean and deviation over draws of 5 images per class; the same with logistic.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir

log = logging.getLogger(__name__)

SCHEMA = 1
PREDICTIONS = "mimbench_predictions"  # the metadata key of `predictions.safetensors`, one prediction for each image
FORMER_FACTS = {  # facts of earlier releases, by their names today
    "interpolation": "image_resize",  # in encoder files, `interpolation` is that of position tables
    "mask": "mask_ratio",
}
PACKAGES = (
    "mimbench",
    "torch",
    "torchvision",
    "timm",
    "pillow",
    "mmengine",
    "numpy",
    "pycocotools",
    "hotcoco",
)


@dataclass
class Outcome:
    """The return value of a stage's `run`."""

    metrics: dict[str, float]  # full precision, named as above
    facts: dict[str, Any] = field(default_factory=dict)  # protocol that changes numbers: crop, pooling, epochs, ...
    images_per_second: float | None = None
    peak_memory: int | None = None  # bytes
    device: str | None = None  # as engine.run.process.device_name returns it
    family: str | None = None  # of the input checkpoint
    pictures: Callable[[], None] | None = None  # draws the run's pictures, after the result is written
    loading: Mapping[str, Any] | None = None  # engine.data.waiting.Loading; None without a training

    def draw(self) -> None:
        """Draw the run's pictures, if any. Errors are only logged: the result is already written."""
        if self.pictures is None:
            return
        try:
            self.pictures()
        except Exception as error:  # anything, even out of memory: no number depends on the pictures
            log.warning("the run is done, but drawing its pictures failed: %r", error)


def write_result(
    run: RunDir,
    outcome: Outcome,
    seconds: float,
    checkpoint_hash: str | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `result.json` and return its content. `seconds` is the run's wall time over all attempts.

    Recipe, stage, identity, data and the input checkpoint (`checkpoint`: {"path", "hash"} or None) come from
    `run.json`; `checkpoint_hash` is the hash of an encoder that did not exist yet when the run was created, and
    `encoder` says how it treats its images (`backbones.checkpoints.info.recorded`).

    Raises:
        ValueError: naming a metric that is not a finite number.
    """
    for name, value in outcome.metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"{run.path}: metric {name} is {value}, so no result is written")
    about = run.read_about()
    checkpoint = about.get("checkpoint")
    if checkpoint and checkpoint_hash:
        checkpoint = {**checkpoint, "hash": checkpoint_hash}
    result = {
        "schema": SCHEMA,
        "recipe": about["recipe"],
        "stage": about["stage"],
        "identity": about["identity"],
        "data": about.get("data"),
        "checkpoint": {**checkpoint, "family": outcome.family, **(encoder or {})} if checkpoint else None,
        "metrics": outcome.metrics,
        "facts": outcome.facts,
        "seconds": seconds,
        "images_per_second": outcome.images_per_second,
        "loading": None if outcome.loading is None else dict(outcome.loading),
        "device": outcome.device or platform.processor() or platform.machine(),
        "peak_memory": outcome.peak_memory,
        "versions": versions(),
        "commit": commit(),
        "finished": time.time(),
    }
    write_json(run.result, result)
    return result


def with_current_facts(result: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `result.json` with its facts under their current names."""
    facts = {FORMER_FACTS.get(name, name): value for name, value in result.get("facts", {}).items()}
    return {**result, "facts": facts}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of this code, with "+changes" if files differ from it; None outside a git checkout.

    The code of a SLURM job is a copy without git; `snapshot.json` beside it records the commit.
    """
    here = Path(__file__).parent
    try:
        copied = json.loads((Path(__file__).parents[3] / "snapshot.json").read_text(encoding="utf-8"))
        if "commit" not in copied:  # of an installed package
            return None
        return f"{copied['commit']}+changes" if copied["dirty"] else str(copied["commit"])
    except FileNotFoundError:
        pass
    try:
        head = _git(here, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
