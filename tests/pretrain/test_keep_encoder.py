"""Encoders that a pretraining leaves on its way: those of that very moment, whatever happened in between."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.config import ViT
from mimbench.engine.run.config import Compute, identity, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.state import load_state, state_path
from mimbench.pretrain.config import CrossMAEConfig, Pretrain
from mimbench.pretrain.run import run

CONFIG = Pretrain(
    data="images",
    encoder=ViT(width=16, depth=1, heads=2, patch=4, image=16),
    method=CrossMAEConfig(depth=1, width=16, heads=2),
    epochs=5,
    warmup_epochs=0.5,
    batch=4,
    base_lr=1e-1,
    keep_encoder_every=2,
    compute=Compute(precision="fp32", workers=0, device="cpu", log_every=3, save_every=3, keep=10),
)


@pytest.fixture
def config(tmp_path: Path) -> Pretrain:
    """On 12 images: an epoch of three steps, a checkpoint after each."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 6), ("val", 3)):
        for kind in ("cat", "dog"):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return replace(CONFIG, data=str(tmp_path / "images"))


def _directory(path: Path, config: Pretrain) -> RunDir:
    about = {"recipe": "pretrain/tiny", "stage": "pretrain", "identity": identity(config, "pretrain", None)}
    return RunDir.create(path, to_text(config), {**about, "checkpoint": None})


def _tensors(state: object) -> list[torch.Tensor]:
    """All tensors in a training state."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def test_each_is_the_encoder_of_its_epoch(tmp_path: Path, config: Pretrain) -> None:
    where = _directory(tmp_path / "run", config)
    run(config, where)
    assert sorted(file.name for file in (where.path / "encoders").iterdir()) == [
        "epoch-0002.safetensors",
        "epoch-0004.safetensors",
    ]
    for epoch in (2, 4):
        kept, info = load_encoder(where.encoder_at(epoch))
        assert info.vit == config.encoder
        saved = _tensors(load_state(state_path(where.checkpoints, 3 * epoch)))
        weight = kept["blocks.0.mlp.fc1.weight"]
        assert any(torch.equal(weight, tensor) for tensor in saved if tensor.shape == weight.shape)
    assert where.encoder_at(2).read_bytes() != where.encoder_at(4).read_bytes() != where.encoder.read_bytes()


def test_keeping_them_changes_nothing_and_a_restart_makes_the_same(tmp_path: Path, config: Pretrain) -> None:
    where, plain = _directory(tmp_path / "run", config), _directory(tmp_path / "plain", config)
    run(config, where)
    run(replace(config, keep_encoder_every=None), plain)
    assert where.encoder.read_bytes() == plain.encoder.read_bytes()
    assert not (plain.path / "encoders").exists()
    assert identity(config, "pretrain", None) == identity(replace(config, keep_encoder_every=None), "pretrain", None)
    again = _directory(tmp_path / "again", config)
    again.checkpoints.mkdir()
    shutil.copy(state_path(where.checkpoints, 6), state_path(again.checkpoints, 6))  # killed right after epoch 2
    run(config, again)
    for epoch in (2, 4):
        ours, theirs = load_file(again.encoder_at(epoch)), load_file(where.encoder_at(epoch))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_number_of_epochs_is_wanted() -> None:
    with pytest.raises(ValueError, match="keep_encoder_every=0"):
        replace(CONFIG, keep_encoder_every=0)
