"""Two processes that accumulate over two micro-batches pretrain as one process with the whole batch, mask for mask.
With shares of the weights (compute.shard) they do too, also in compiled blocks, and so do their monitor and the
encoders kept on the way.

python tests/pretrain/test_ranks.py DIRECTORY     # what the test starts: one process, then two, forked from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.compiling import compile_parts
from mimbench.pretrain import run as pretraining
from mimbench.pretrain.config import (
    CrossMAEConfig,
    GridMasking,
    KeepMasking,
    MAEConfig,
    MaskAlignConfig,
    Pretrain,
    RandomMasking,
)
from tests.ranks import as_ranks

ROOT = Path(__file__).parents[2]
TINY = Pretrain(
    encoder=ViT(width=16, depth=2, heads=2, patch=4, image=16),
    method=CrossMAEConfig(depth=1, width=16, heads=2),
    epochs=2,
    warmup_epochs=0.5,
    batch=8,
    base_lr=1e-1,
    keep_encoder_every=1,
    compute=Compute(precision="fp32", workers=0, device="cpu", log_every=2, save_every=3),
)
CASES = {
    "crossmae": TINY,
    "mae": replace(TINY, method=MAEConfig(depth=1, width=16, heads=2), masking=RandomMasking(predict=0.75)),
    "early_maps": replace(
        TINY, method=CrossMAEConfig(depth=1, width=16, heads=2, feature_maps=(0,)), masking=GridMasking()
    ),
    "maskalign": replace(
        TINY,
        method=MaskAlignConfig(
            teacher=None, layers="mid0", fusion="simple", drop_path=0.0
        ),  # which reads no other block
        masking=KeepMasking(),
        lr_factor="none",
        checkpoint="teacher.safetensors",
    ),
}


def _images(root: Path) -> None:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 13), ("val", 3)):
        for kind in ("cat", "dog"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(0, 256, (20 + index, 24, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")


SHARED = ("crossmae", "maskalign")


def _attempt(directory: Path, name: str, accumulate: int, shard: bool = False, compiled: bool = False) -> None:
    config = replace(CASES[name], data=str(directory / "images"))
    if config.checkpoint:
        config = replace(config, checkpoint=str(directory / config.checkpoint))
    config = replace(config, compute=replace(config.compute, accumulate=accumulate, shard=shard))
    if compiled:  # captured, and run as it is: inductor needs a minute a process
        pretraining.compile_parts = partial(compile_parts, backend="eager", whole=True)
        config = replace(config, compile="blocks")
    about = {"recipe": f"test/{name}", "stage": "pretrain", "identity": "0", "checkpoint": None}
    division = "compiled" if compiled else "shares" if shard else accumulate
    pretraining.run(config, RunDir.create(directory / f"{name}-{division}", to_text(config), about))


def main(directory: Path) -> None:
    """Every case alone, then by two processes that accumulate over two micro-batches."""
    import mmengine.runner  # noqa: F401  (once, rather than in each process)
    import torch._dynamo  # noqa: F401

    _images(directory / "images")
    teacher = VisionTransformer(TINY.encoder)
    about = EncoderInfo("crossmae", TINY.encoder, final_norm=False)
    save_encoder(directory / "teacher.safetensors", teacher.state_dict(), about)
    for name in CASES:
        for world in (1, 2):
            as_ranks(world, lambda name=name, world=world: _attempt(directory, name, accumulate=world))
    for name in SHARED:
        as_ranks(2, lambda name=name: _attempt(directory, name, accumulate=2, shard=True))
    as_ranks(2, lambda: _attempt(directory, "crossmae", accumulate=2, shard=True, compiled=True))


@pytest.mark.slow
def test_two_processes_pretrain_as_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    divided = [(name, "2") for name in CASES] + [(name, "shares") for name in SHARED]
    for name, division in [*divided, ("crossmae", "compiled")]:
        for file in ("encoder.safetensors", "encoders/epoch-0001.safetensors"):
            alone, together = (load_file(tmp_path / f"{name}-{number}" / file) for number in (1, division))
            for weight in alone:
                sides = [state[weight] for state in (together, alone)]
                if weight.endswith("qkv.bias"):  # of keys: softmax has no gradient, and Adam makes steps of rounding
                    sides = [bias.view(3, -1)[[0, 2]] for bias in sides]
                torch.testing.assert_close(*sides, rtol=1e-5, atol=1e-6, msg=f"{name} {division}: {weight}")
        seen = [_monitored(tmp_path / f"{name}-{number}") for number in (1, division)]
        assert len(seen[0]) == 1
        assert seen[1] == [pytest.approx(line, rel=1e-4) for line in seen[0]]


def _monitored(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in ("val_loss", "probe_knn", "feature_rank")} for line in lines if "val_loss" in line
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
