"""Data of every kind that recipes read, small: images of many formats, COCO, LVIS, a teacher and a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.data.imagenet import imagenet_a_wnids
from tests.det.conftest import write_coco
from tests.det.lvis_data import write_lvis
from tests.seg.conftest import write_ade

CLASSES = 4  # of ImageNet-A, which cls/robustness knows
KINDS = (  # of files, and how Pillow calls their colours
    *[("JPEG", "RGB")] * 6, ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("WEBP", "RGB"),
)  # fmt: skip


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training and 16 validation images."""
    return _write_images(tmp_path_factory.mktemp("images"), 16, 4)


@pytest.fixture(scope="session")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """208 training and 32 validation images: k-NN has up to 200 neighbours."""
    return _write_images(tmp_path_factory.mktemp("many_images"), 52, 8)


def _write_images(root: Path, train: int, val: int) -> Path:
    """train/ and val/ in ImageNet's layout, 16 to 90 pixels a side, strips among them, in many formats and modes."""
    rng, generator = Random(0), np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(imagenet_a_wnids()[:CLASSES]):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                width, height = rng.randint(16, 90), 4 if number == 7 else rng.randint(16, 90)
                pixels = generator.integers(0, 160, (height, width, 3), dtype=np.uint8)
                pixels[..., label % 3] += 90
                kind, mode = rng.choice(KINDS)
                Image.fromarray(pixels).convert(mode).save(root / split / name / f"{number}.{kind.lower()}", kind)
    return root


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each split in COCO's layout, with polygons and RLE regions."""
    return write_coco(tmp_path_factory.mktemp("coco") / "shapes", 4)


@pytest.fixture(scope="session")
def lvis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LVIS-like data set with rare categories, three images in val: what is not trained detects 300 on each."""
    root = write_lvis(tmp_path_factory.mktemp("lvis"))
    file = root / "annotations" / "lvis_v1_val.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of each split with label maps, laid out as ADE20K."""
    return write_ade(tmp_path_factory.mktemp("ade"), 8)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for CLIP: a tiny encoder in a file, with the students' grid."""
    vit = ViT(width=24, depth=6, heads=2, patch=8, image=32)
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_encoder(file, VisionTransformer(vit).state_dict(), EncoderInfo("crossmae", vit, False))
    return file
