"""Crops and batches as torchvision and timm make them, and what a data set must have."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor
from torchvision import transforms

from mimbench.cls.config import Finetune
from mimbench.cls.data import crops as data
from mimbench.cls.data.augment import FinetuneTransform
from mimbench.cls.data.crops import (
    BatchAugmentation,
    CentreCrops,
    ProbeCrops,
    TimmCrops,
    draw_once,
    open_splits,
    resized_side,
)
from mimbench.engine.data.batches import SeededDataset
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, normalise
from mimbench.engine.data.shrink import Shrinking, shrink

CPU = torch.device("cpu")
PAPERS = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two smooth images of 300 x 200 and 200 x 260, as one class without splits."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "only").mkdir()
    generator = np.random.default_rng(1)
    for name, size in (("a", (300, 200)), ("b", (200, 260))):
        small = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(root / "only" / f"{name}.png")
    return root


def _pil(root: Path) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted((root / "only").iterdir())]


@pytest.mark.parametrize(("side", "short"), [(224, 256), (192, 219), (96, 109), (448, 448), (384, 384)])
def test_evaluation_resizes_by_the_published_rule(side: int, short: int) -> None:
    assert resized_side(side, None) == short
    assert resized_side(32, 1.0) == 32


@pytest.mark.parametrize(("side", "short"), [(96, 109), (256, 256)])
def test_evaluation_crops_are_those_of_torchvision_on_pil_images(photographs: Path, side: int, short: int) -> None:
    original = transforms.Compose(
        [
            transforms.Resize(short, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.PILToTensor(),
        ]
    )
    crops = CentreCrops(ImageFolder(photographs, "val"), side)
    for index, image in enumerate(_pil(photographs)):
        difference = (crops[index][0].int() - original(image).int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.1  # one grey level here and there: another rounding inside torchvision


RESIZE = Image.Image.resize


def _as_pillow_12(image: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
    """Resize along the rows, then along the columns."""
    return RESIZE(RESIZE(image, (size[0], image.height), resample), size, resample)


@pytest.mark.parametrize(
    ("randaugment", "smallest", "flip"), [(PAPERS, 0.08, True), (None, 0.08, True), (None, 0.6, False)]
)
def test_training_crops_are_those_of_timm(
    photographs: Path, randaugment: str | None, smallest: float, flip: bool
) -> None:
    """With Pillow's resizing as up to version 12 (`engine/data/pillow.py`; its golden values are in test_augment)."""
    original = create_transform(
        64,
        is_training=True,
        scale=(smallest, 1),
        hflip=0.5 * flip,
        color_jitter=None,
        auto_augment=randaugment,
        interpolation="bicubic",
    )
    crops = TimmCrops(ImageFolder(photographs, "train"), 64, smallest=smallest, flip=flip, randaugment=randaugment)
    for seed in range(12):
        _seed(seed)
        with patch.object(Image.Image, "resize", _as_pillow_12):
            expected = original(_pil(photographs)[seed % 2])
        _seed(seed)
        found = crops[seed % 2][0]
        assert found.dtype == torch.uint8
        torch.testing.assert_close(normalise(found[None])[0], expected, rtol=0, atol=2e-6)


def test_crops_resized_by_torch_differ_from_pillows_by_one_value(photographs: Path) -> None:
    folder = ImageFolder(photographs, "train")
    pil, tensor = (
        [TimmCrops(folder, 64, smallest=0.08, flip=True, randaugment=text, pixels=pixels) for text in (None, PAPERS)]
        for pixels in ("pil", "tensor")
    )
    for seed in range(12):
        after = []
        for with_pillow, with_torch in zip(pil, tensor, strict=True):
            crops = []
            for one in (with_pillow, with_torch):
                _seed(seed)
                crops.append(one[seed % 2][0])
                after.append((random.random(), np.random.rand(), float(torch.rand(()))))
            apart = (crops[0].int() - crops[1].int()).abs()
            if with_pillow is pil[0]:
                assert apart.max() <= 1
            assert apart.float().mean() < 1
        assert after[0] == after[1]
        assert after[2] == after[3], "the same draws"


def _crops_of(image: Tensor, seeds: int) -> list[tuple[Tensor, Tensor]]:
    """Crops of an image that Pillow resized, and torch, by seed."""
    found = []
    for seed in range(seeds):
        crops = []
        for pixels in ("pil", "tensor"):
            transform = FinetuneTransform(64, smallest=0.08, flip=True, randaugment=None, pixels=pixels)  # type: ignore[arg-type]
            _seed(seed)
            crops.append(transform(image))
        found.append((crops[0], crops[1]))
    return found


def test_crops_of_noise_that_torch_resized_differ_from_pillows_by_two_values() -> None:
    noise = torch.randint(0, 256, (3, 90, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    apart = [(pil.int() - tensor.int()).abs().max().item() for pil, tensor in _crops_of(noise, 12)]
    assert max(apart) == 2, "what docs/protocols.md says"


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1)])
def test_an_image_of_a_few_pixels_has_crops(size: tuple[int, int]) -> None:
    """timm draws crops without a pixel of these; a resize of nothing ended the run."""
    image = torch.full((3, *size), 77, dtype=torch.uint8)
    for crops in _crops_of(image, 24):
        for crop in crops:
            assert crop.shape == (3, 64, 64)
            assert (crop == 77).all()


def test_one_draw_crops_follow_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "random", _Scripted(share=0.5, log_aspect=0.0))
    box = draw_once(100, 100, 0.08, flip=False)
    assert (box.height, box.width) == (71, 71)  # sqrt(5000) = 70.7
    monkeypatch.setattr(data, "random", _Scripted(share=0.9, log_aspect=0.0))
    assert draw_once(20, 200, 0.08, flip=False)[:4] == (0, 70, 20, 60)  # 60 x 60 clipped to the image, not redrawn
    monkeypatch.setattr(data, "random", _Scripted(share=0.5, log_aspect=float(np.log(4 / 3))))
    box = draw_once(100, 100, 0.08, flip=True)
    assert (box.height, box.width, box.flip) == (61, 82, True)


def test_one_draw_crops_stay_inside_and_cover_the_shares(photographs: Path) -> None:
    random.seed(0)
    boxes = [draw_once(100, 130, 0.08, flip=True) for _ in range(3000)]
    assert all(b.top >= 0 and b.left >= 0 and b.top + b.height <= 100 and b.left + b.width <= 130 for b in boxes)
    shares = np.array([b.height * b.width / 13000 for b in boxes])
    assert shares.min() > 0.075
    assert np.mean(shares) == pytest.approx(0.53, abs=0.02)  # a little below (0.08 + 1) / 2: some are clipped
    assert np.mean([b.flip for b in boxes]) == pytest.approx(0.5, abs=0.04)
    crops = ProbeCrops(ImageFolder(photographs, "train"), 32, smallest=0.08, flip=True)
    assert crops[0][0].shape == (3, 32, 32)


def test_an_item_depends_on_its_seed_alone(photographs: Path) -> None:
    base = TimmCrops(ImageFolder(photographs, "train"), 32, smallest=0.08, flip=True, randaugment=PAPERS)
    items = SeededDataset(base, 3)
    first = items[(5, 1)][0]
    _seed(99)
    items[(0, 0)]
    assert torch.equal(items[(5, 1)][0], first)
    assert not torch.equal(items[(6, 1)][0], first)


def test_mixing_is_timms() -> None:
    augment = BatchAugmentation(Finetune(erasing=0), 10, IMAGENET_MEAN, IMAGENET_STD, CPU)
    original = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=0.1, num_classes=10)
    images, labels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (6,))
    for seed in range(4):
        _seed(seed)
        expected = original(normalise(images), labels)
        _seed(seed)
        found = augment(images, labels)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_erasing_fills_a_rectangle_of_some_images_with_noise() -> None:
    augment = BatchAugmentation(Finetune(mixup=0, cutmix=0, erasing=0.25), 10, IMAGENET_MEAN, IMAGENET_STD, CPU)
    images, labels = torch.full((400, 3, 16, 16), 128, dtype=torch.uint8), torch.zeros(400, dtype=torch.int64)
    _seed(0)
    found, targets = augment(images, labels)
    changed = (found != normalise(images)).all(1)  # (B, H, W)
    erased = changed.flatten(1).any(1)
    assert erased.float().mean() == pytest.approx(0.25, abs=0.07)
    for mask in changed[erased]:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
    assert found[changed.unsqueeze(1).expand_as(found)].std() == pytest.approx(1, abs=0.05)
    assert torch.equal(targets, labels)


def test_a_data_set_without_splits_says_so_in_the_facts(photographs: Path, folder: Path) -> None:
    assert open_splits(str(photographs)).facts()["validation"] != "val split"
    splits = open_splits(str(folder))
    assert splits.facts() == {"classes": 3, "train_images": 72, "val_images": 21, "validation": "val split"}


class _Scripted:
    """Python's `random` with the draws of a crop decided; places are in the middle, and it flips."""

    def __init__(self, share: float, log_aspect: float) -> None:
        self.draws = [share, log_aspect]

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.draws[0] <= high
        return self.draws.pop(0)

    def randint(self, low: int, high: int) -> int:
        return (low + high) // 2

    def random(self) -> float:
        return 0.0


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_part_of_the_training_split(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "few.txt").write_text("red/3.png\nblue/0.png\nblue/11.png\n")
    splits = open_splits(str(folder), subset=str(tmp_path / "few.txt"))
    assert [splits.train.paths.name(place) for place in range(3)] == ["blue/0.png", "blue/11.png", "red/3.png"]
    assert splits.train.labels.tolist() == [0, 0, 2]
    assert splits.classes == 3
    assert splits.facts()["train_images"] == 3
    assert "3 images of few.txt" in str(splits.facts()["subset"])
    assert len(splits.val) == 21
    assert "1 of 3 classes have no training images: green" in caplog.text


def test_splits_whose_classes_are_numbered_otherwise(folder: Path, tmp_path: Path) -> None:
    shrunk = tmp_path / "shrunk"
    list(shrink(folder, shrunk, Shrinking(16), 0))
    shutil.rmtree(shrunk / "train")
    shutil.copytree(folder / "train", shrunk / "train")
    (shrunk / "train" / "green").rename(shrunk / "train" / "amber")
    with pytest.raises(ValueError, match="has 3 classes, but the training split has 3; the first difference is "):
        open_splits(str(shrunk))
