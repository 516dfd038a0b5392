"""AMT pretrainings that are killed and started again, or that several processes share.

python tests/pretrain/killed_amt.py DIRECTORY     # what test_weight_maps.py starts; prints what came of each as JSON

Each attempt is a process of its own, forked from this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mmengine.runner
import torch
import torch._dynamo  # every optimiser imports it
import torch.utils.tensorboard
from matplotlib.figure import Figure  # noqa: F401  (each attempt would import it)
from PIL import Image
from safetensors.torch import load_file

from mimbench.backbones.config import ViT
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.session import Session
from mimbench.pretrain import run as pretrain_run
from mimbench.pretrain.config import AttentionMasking, MAEConfig, Pretrain
from mimbench.pretrain.masking.attention_guide import AttentionGuide
from mimbench.pretrain.masking.weight_maps import WeightMaps
from mimbench.pretrain.run import run
from tests.kills import die, dying, forked, killed

CONFIG = Pretrain(
    encoder=ViT(width=16, depth=2, heads=2, patch=4, image=16),
    method=MAEConfig(depth=1, width=16, heads=2),
    masking=AttentionMasking(start_epoch=1, interval=2),
    epochs=6,
    warmup_epochs=0.5,
    batch=4,
    base_lr=5e-2,
    lr_factor="none",
    compute=Compute(precision="fp32", workers=0, device="cpu", log_every=2, save_every=2),
)  # an epoch is 3 steps; maps are made at steps 3, 9 and 15, states are saved after steps 2, 4, 6 ...


def images(directory: Path) -> Path:
    """12 training and 4 validation images of unequal size."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 6), ("val", 2)):
        for kind in ("cat", "dog"):
            folder = directory / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(0, 256, (20 + index, 24, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return directory


def cut_short(guide: AttentionGuide, batch: int) -> Iterator[torch.Tensor]:
    """The kill comes when the second renewal has made two thirds of its maps."""
    for number, maps in enumerate(MADE(guide, batch)):
        if guide.maps.epoch == 1 and number == 2:
            die()
        yield maps


MADE = AttentionGuide._made
MOMENTS: dict[str, Callable[[], Any]] = {
    "before the first maps": lambda: patch.object(WeightMaps, "write", dying(WeightMaps.write, 1)),
    "having made the first maps": lambda: patch.object(WeightMaps, "write", dying(WeightMaps.write, 1, after=True)),
    "making the second maps": lambda: patch.object(AttentionGuide, "_made", cut_short),
    "having made the second maps": lambda: patch.object(WeightMaps, "write", dying(WeightMaps.write, 2, after=True)),
    "before the last picture": lambda: patch.object(pretrain_run, "_draw", dying(pretrain_run._draw, 1)),
    "between two renewals": lambda: patch.object(Session, "write_line", dying(Session.write_line, 4)),
}


def attempt(directory: Path, config: Pretrain) -> None:
    RunDir.create(directory, to_text(config), {"recipe": "pretrain/amt", "stage": "pretrain", "identity": "0"})
    run(config, RunDir(directory))


def started(directory: Path, config: Pretrain, moment: Callable[[], Any] | None = None, **where: str) -> int:
    """Start an attempt in a process of its own, and return its number."""

    def work() -> None:
        with patch.dict(os.environ, where), moment() if moment else nullcontext():
            attempt(directory, config)

    return forked(work)


def killed_at(directory: Path, config: Pretrain, moment: Callable[[], Any] | None) -> dict[str, Any]:
    """Killed once at `moment` (never if None), then started again."""
    kills = 0
    while killed(started(directory, config, None if kills else moment)):
        kills += 1
    return {"kills": kills, **outcome(directory)}


def shared(directory: Path, config: Pretrain, world: int) -> dict[str, Any]:
    """By several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    ranks = [{**where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    children = [started(directory, config, None, **rank) for rank in ranks]
    assert [killed(child) for child in children] == [False] * world
    return outcome(directory)


def outcome(directory: Path) -> dict[str, Any]:
    """What a run left behind, without what differs by the clock."""
    timed = ("images_per_second", "waiting", "seconds", "memory")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    maps = sorted((directory / "weight_maps").iterdir())
    return {
        "encoder": hashlib.sha256((directory / "encoder.safetensors").read_bytes()).hexdigest(),
        "lines": [{key: value for key, value in line.items() if key not in timed} for line in lines],
        "picture": hashlib.sha256((directory / "plots" / "reconstructions.png").read_bytes()).hexdigest(),
        "maps": {path.name: load_file(path)["maps"].flatten().tolist() for path in maps},
        "stale": [path.name for path in directory.rglob("*.tmp")],
    }


def main(directory: Path) -> None:
    """Everything above, as the module's first lines say."""
    mmengine.runner.runner.collect_env()  # what it imports, the attempts need not
    config = replace(CONFIG, data=str(images(directory / "images")))
    outcomes = {"never": killed_at(directory / "never", config, None)}
    for name, moment in MOMENTS.items():
        outcomes[name] = killed_at(directory / name.replace(" ", "-"), config, moment)
    loading = replace(config, compute=replace(config.compute, workers=2))
    outcomes["workers"] = killed_at(directory / "workers", loading, MOMENTS["having made the second maps"])
    outcomes["two processes"] = shared(directory / "two", config, 2)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
