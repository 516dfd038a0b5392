"""`mimbench data check imagenet`: everything wrong with a folder of images in one report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cls.check import check_images
from engine import decoding
from engine.datasets import Finding


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / name / "1.jpg")
    return tmp_path


def _errors(path: Path) -> list[Finding]:
    report = check_images(path)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert report.failed == bool(errors)
    return errors


def test_nothing_to_say(folder: Path) -> None:
    report = check_images(folder)
    assert report.findings == []
    assert report.facts == {"classes": 2, "train images": 2, "val images": 2}


@pytest.mark.parametrize("few", [decoding.FEW, 1])  # 1: by several processes
def test_every_broken_image_is_found(folder: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FEW", few)
    cut, text = folder / "train" / "ant" / "1.jpg", folder / "val" / "bee" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    text.write_text("hello")
    findings = _errors(folder)
    assert [finding.file for finding in findings] == [str(cut), str(text)]
    assert [finding.what for finding in findings] == [
        "the image is cut short",
        "is not an image that can be read",
    ]


def test_grey_images_are_noted(folder: Path) -> None:
    grey = folder / "train" / "ant" / "1.jpg"
    Image.open(grey).convert("L").save(grey)
    (note,) = check_images(folder).findings
    assert (note.severity, note.what) == ("note", "1 of 2 images are greyscale, palette or CMYK")


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    (finding,) = _errors(tmp_path / "nothing")
    assert str(finding) == f"{tmp_path / 'nothing'}: does not exist; name a directory with train/ and val/"


def test_no_images(tmp_path: Path) -> None:
    assert [finding.what for finding in _errors(tmp_path)] == ["holds no images"]
    (tmp_path / "train" / "ant").mkdir(parents=True)
    assert [finding.what for finding in _errors(tmp_path)] == ["holds no images"]


def test_a_class_of_one_split_only(folder: Path) -> None:
    (folder / "val" / "bee").rename(folder / "val" / "wasp")
    assert [finding.file for finding in _errors(folder)] == [str(folder / "val" / "wasp")]
    (folder / "val" / "wasp" / "1.jpg").unlink()
    (folder / "val" / "wasp").rename(folder / "val" / "bee")
    report = check_images(folder)
    assert not report.failed
    assert [str(finding) for finding in report.findings] == [
        f"{folder / 'val' / 'bee'}: holds no images; add some, or remove the class"
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_split_alone(folder: Path, split: str) -> None:
    other = "val" if split == "train" else "train"
    (folder / other).rename(folder / "elsewhere")
    report = check_images(folder)
    assert [finding.what for finding in report.findings] == [f"has {split}/ alone"]
    assert report.facts == {"classes": 2, f"{split} images": 2}


def test_no_splits(folder: Path) -> None:
    report = check_images(folder / "train")
    assert not report.failed
    assert [finding.what for finding in report.findings] == ["has no train/ and val/"]
    assert report.facts == {"classes": 2, "images": 2}
