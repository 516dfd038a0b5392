"""A small image folder with three classes that a colour tells apart, a tiny encoder and a place for runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.config import to_text
from mimbench.engine.run.rundir import RunDir

TINY = ViT(width=16, depth=2, heads=2, patch=8, image=16)
TRAIN, VAL = 24, 7  # images of each class; 21 in all are no multiple of any batch used here


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with images of 16 x 16: noise on red, green or blue."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An encoder with a final norm whose weights are not those of a fresh one."""
    torch.manual_seed(7)
    model = VisionTransformer(TINY, final_norm=True)
    torch.nn.init.uniform_(model.norm.weight, 0.5, 2)
    save_encoder(tmp_path / "encoder.safetensors", model.state_dict(), EncoderInfo("mae", TINY, final_norm=True))
    return tmp_path / "encoder.safetensors"


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[Any], RunDir]:
    """Makes the directory of a run of a config."""

    def make(config: Any) -> RunDir:
        name = type(config).__name__.lower()
        return RunDir.create(
            tmp_path / name, to_text(config), {"recipe": f"cls/{name}", "stage": "cls", "identity": "0123456789"}
        )

    return make
