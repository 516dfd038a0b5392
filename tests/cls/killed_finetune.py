"""Fine-tunings that are killed by SIGKILL and started again, and evaluations by one process and by two.

    python tests/cls/killed_finetune.py DIRECTORY DATA

DATA holds train/ and val/ with an odd number of images and classes named by wnids of ImageNet-R. Prints a line of JSON.
Libraries are imported once; each attempt is a process of its own, forked from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mmengine.runner
import torch
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import mimbench.engine.training.loop  # noqa: F401
from mimbench.backbones.config import ViT
from mimbench.cls import finetune
from mimbench.cls.config import Classify, Finetune
from mimbench.cls.run import run
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir
from tests.kills import dying, forked, killed

COMPUTE = Compute(precision="fp32", workers=0, threads=1, device="cpu", save_every=7, log_every=6)
TINY = ViT(width=16, depth=2, heads=2, patch=8, image=16)
SAVE, EVALUATION = finetune.save_classifier, finetune.Evaluation
MOMENTS: dict[str, Callable[[], Any] | None] = {
    "never": None,
    "evaluating": lambda: patch.object(EVALUATION, "__call__", dying(EVALUATION.__call__, 3)),
    "before the best is saved": lambda: patch.object(finetune, "save_classifier", dying(SAVE, 2)),
    "when the best is saved": lambda: patch.object(finetune, "save_classifier", dying(SAVE, 2, after=True)),
    "before the last is saved": lambda: patch.object(finetune, "_leave", dying(finetune._leave, 1)),
}


def fine_tuning(data: str) -> Finetune:
    """Six epochs of six steps, at a rate that makes accuracy jump about."""
    return Finetune(
        data=data, encoder=TINY, image=16, epochs=6, warmup_epochs=1, batch=12, base_lr=1.0, layer_decay=0.9,
        mixup=0.2, randaugment=None, drop_path=0.1, compute=COMPUTE,
    )  # fmt: skip


def started(config: Any, directory: Path, moment: Callable[[], Any] | None = None) -> int:
    """Run `config` in a process of its own, and return its number."""

    def work() -> None:
        about = {"recipe": "cls/test", "stage": "cls", "identity": "0123456789"}
        with moment() if moment else nullcontext():
            outcome = run(config, RunDir.create(directory, to_text(config), about))
        if not int(os.environ.get("RANK", "0")):
            (directory / "outcome.json").write_text(json.dumps({"metrics": outcome.metrics, "facts": outcome.facts}))

    return forked(work)


def survived(config: Any, directory: Path, moment: Callable[[], Any] | None) -> dict[str, Any]:
    """Killed once at `moment` (never if None), then started again: what it left."""
    kills = 0
    while killed(started(config, directory, None if kills else moment)):
        kills += 1
    left = RunDir(directory)
    files = {"last": left.classifier, "best": left.best_classifier}
    return {
        "kills": kills,
        **json.loads((directory / "outcome.json").read_text()),
        **{name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
        "stale": [path.name for path in directory.rglob("*.tmp")],
    }


def by(world: int, config: Any, directory: Path) -> dict[str, Any]:
    """Run `config` in `world` processes together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(world):
        where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        with patch.dict(os.environ, {**where, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}):
            children.append(started(config, directory))
    deaths = [killed(child) for child in children]
    assert not any(deaths)
    found: dict[str, Any] = json.loads((directory / "outcome.json").read_text())
    if (file := RunDir(directory).predictions).exists():
        found["predictions"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def main(directory: Path, data: str) -> None:
    """Everything above, as the module's first lines say."""
    mmengine.runner.runner.collect_env()  # what it imports, the attempts need not
    config = fine_tuning(data)
    kills = {name: survived(config, directory / name.replace(" ", "-"), moment) for name, moment in MOMENTS.items()}
    shared = {}
    classifier = str(RunDir(directory / "never").best_classifier)
    for world in (1, 2):
        place = directory / f"by-{world}"
        val = Classify(data=data, checkpoint=classifier, compute=COMPUTE, eval_batch=4, save_predictions=True)
        rendition = Classify(
            data=f"{data}/val", checkpoint=classifier, test="imagenet-r", compute=COMPUTE, eval_batch=4
        )
        shared[str(world)] = {
            "val": by(world, val, place / "val"),
            "imagenet-r": by(world, rendition, place / "r"),
            "training": by(world, config, place / "training"),
        }
    calm = replace(config, base_lr=1e-2, ema=0.9, epochs=2)  # at which rounding stays rounding
    for name, shard in (("copies", False), ("shares", True)):
        shared[name] = by(2, replace(calm, compute=replace(COMPUTE, shard=shard)), directory / name)
    print(json.dumps({"kills": kills, "shared": shared}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
