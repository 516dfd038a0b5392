"""Decoding a whole data set to find what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mimbench.engine.data import integrity as decoding
from mimbench.engine.data.folders import Paths
from mimbench.engine.data.integrity import decoded, not_rgb


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A colour and a grey image, one that is turned by its EXIF data, one cut short, one that is gone."""
    Image.new("RGB", (20, 10)).save(tmp_path / "colour.png")
    Image.new("L", (20, 10)).save(tmp_path / "grey.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "short.jpg").write_bytes((tmp_path / "grey.jpg").read_bytes()[:300])
    return Paths(tmp_path, ["colour.png", "grey.jpg", "turned.jpg", "short.jpg", "gone.jpg"])


@pytest.mark.parametrize("few", [2000, 0])
def test_every_image_is_looked_at_in_order(paths: Paths, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FEW", few)  # 0: in other processes
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    found = list(decoded(paths, "reading"))
    assert [image.path.name for image in found] == ["colour.png", "grey.jpg", "turned.jpg", "short.jpg", "gone.jpg"]
    assert [(image.mode, image.height, image.width) for image in found[:3]] == [
        ("RGB", 10, 20), ("L", 10, 20), ("RGB", 10, 20),
    ]  # fmt: skip
    assert [image.finding.what if image.finding else "" for image in found] == [
        "", "", "", "the image is cut short", "does not exist",
    ]  # fmt: skip
    assert all(image.finding.severity == "error" for image in found[3:] if image.finding)


def test_sizes_can_be_those_of_the_upright_image(paths: Paths) -> None:
    assert [(image.height, image.width) for image in decoded(paths, "reading", upright=True)][2] == (20, 10)


def test_greyscale_is_noted(tmp_path: Path) -> None:
    [note] = not_rgb({"RGB": 7, "L": 2, "I;16": 1}, tmp_path)
    assert str(note).startswith(f"{tmp_path}: 3 of 10 images are not RGB: 1 16-bit greyscale, 2 greyscale; ")
    assert list(not_rgb({"RGB": 10}, tmp_path)) == []
