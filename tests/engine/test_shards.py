"""Images shrunk and packed: what comes out again, going on where it was stopped, and what damage says."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.cls.data.check import check_images
from mimbench.engine.data import shrink as packing
from mimbench.engine.data.batches import Batches
from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.images import ImageFolder, RandomCrops, read_image, shortened
from mimbench.engine.data.shards import Shards
from mimbench.engine.data.shrink import Shrinking, Shrunk, shrink

SMALL = Shrinking(short=32, quality=90)


def _write(path: Path, height: int, width: int, seed: int) -> None:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven training and two validation images, in tars of three."""
    monkeypatch.setattr(packing, "IMAGES", 3)
    sizes = {"ant/1.jpg": (80, 60), "ant/2.png": (50, 100), "ant/ü.jpg": (64, 64), "bee/deep/4.jpg": (33, 90),
             "bee/5.jpg": (40, 40), "bee/small.jpg": (20, 90), "cat/tiny.png": (16, 16)}  # fmt: skip
    for seed, (name, size) in enumerate(sizes.items()):
        _write(tmp_path / "in" / "train" / name, *size, seed)
    for seed, name in enumerate(("ant/8.jpg", "cat/9.jpg")):
        _write(tmp_path / "in" / "val" / name, 70, 50, 10 + seed)
    return tmp_path / "in"


def _shrunk(source: Path, out: Path, shrinking: Shrinking = SMALL, workers: int = 0) -> list[Shrunk]:
    return list(shrink(source, out, shrinking, workers))


def test_packed_images_are_the_shrunk_ones_in_the_same_order(source: Path, tmp_path: Path) -> None:
    train, val = _shrunk(source, tmp_path / "out", workers=2)
    assert (train.images, val.images, train.left_out) == (7, 2, [])
    before, after = ImageFolder(source, "train", cache=False), ImageFolder(tmp_path / "out", "train", cache=False)
    assert after.classes == before.classes == ["ant", "bee", "cat"]
    assert after.labels.tolist() == before.labels.tolist()
    for index in range(7):
        original, packed = before[index][0], after[index][0]
        if min(original.shape[1:]) <= 32:
            assert torch.equal(packed, original)
        else:
            expected = shortened(original, 32)
            assert packed.shape == expected.shape
            assert (packed.int() - expected.int()).abs().float().mean() < 4
    names = [after.paths.text(index).rpartition("/train/")[2] for index in range(7)]
    assert names == ["ant/1.jpg", "ant/2.png.jpg", "ant/ü.jpg", "bee/5.jpg", "bee/deep/4.jpg", "bee/small.jpg",
                     "cat/tiny.png"]  # fmt: skip
    assert after.facts() == {"images": "shrunk to a short side of 32 px, JPEG quality 90"}
    assert ImageFolder(tmp_path / "out", "val").labels.tolist() == [0, 2]


def test_the_files_are_ordinary_tars(source: Path, tmp_path: Path) -> None:
    _shrunk(source, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train" / "00002.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert (tmp_path / "unpacked/cat/tiny.png").read_bytes() == (source / "train/cat/tiny.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == [
        "00000.tar", "00001.tar", "00002.tar", "index.safetensors",
    ]  # fmt: skip


def test_they_load_in_other_processes_and_can_be_checked(source: Path, tmp_path: Path) -> None:
    _shrunk(source, tmp_path / "out")
    folder = ImageFolder(tmp_path / "out", "train", cache=False)
    folder[0]  # a descriptor is open here
    here, there = (
        next(Batches(RandomCrops(folder, 16, noise=4), 7, 0, workers=workers).starting_at(0)) for workers in (0, 2)
    )
    assert torch.equal(here.image, there.image)
    assert torch.equal(pickle.loads(pickle.dumps(folder))[3][0], folder[3][0])
    report = check_images(tmp_path / "out")
    assert not report.failed
    assert report.facts == {"classes": 3, "train images": 7, "val images": 2}


def test_it_goes_on_where_it_was_stopped(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    whole = _shrunk(source, tmp_path / "whole")
    writing, written = packing._write_tar, list[Path]()

    def stopped(path: Path, *rest: object) -> list[str]:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return writing(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(packing, "_write_tar", stopped)
        _shrunk(source, out)
    with pytest.raises(UnfitError, match="is only partly packed; repeat the same"):
        ImageFolder(out, "train")
    first = (out / "train" / "00000.tar").stat().st_mtime_ns
    with pytest.raises(ValueError, match="started with short=32: use another directory"):
        _shrunk(source, out, Shrinking(48))
    assert _shrunk(source, out) == whole
    assert (out / "train" / "00000.tar").stat().st_mtime_ns == first
    for name in ("train/00002.tar", "train/index.safetensors", "val/00000.tar"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_broken_images_are_left_out_and_named(source: Path, tmp_path: Path) -> None:
    broken = source / "train" / "ant" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    train, _ = _shrunk(source, tmp_path / "out")
    assert train.images == 6
    assert len(train.left_out) == 1
    assert train.left_out[0].startswith(f"{broken}: ")
    assert ImageFolder(tmp_path / "out", "train").labels.tolist() == [0, 0, 1, 1, 1, 2]


def test_a_data_set_without_splits(source: Path, tmp_path: Path) -> None:
    [everything] = _shrunk(source / "train", tmp_path / "out")
    assert everything.images == 7
    folder = ImageFolder(tmp_path / "out", "val")
    assert folder.splitless
    assert len(folder) == 7


@pytest.mark.parametrize(("damage", "said"), [
    (lambda tar, index: tar.unlink(), r"00001\.tar: is missing; remove it and index"),
    (lambda tar, index: tar.write_bytes(tar.read_bytes()[:900]), r"00001\.tar: is truncated; remove it and index"),
    (lambda tar, index: index.write_bytes(index.read_bytes()[:99]), r"index\.safetensors: cannot be read"),
])  # fmt: skip
def test_damage_is_named(source: Path, tmp_path: Path, damage: object, said: str) -> None:
    _shrunk(source, tmp_path / "out")
    directory = tmp_path / "out" / "train"
    damage(directory / "00001.tar", directory / "index.safetensors")  # type: ignore[operator]
    with pytest.raises(UnfitError, match=said) as raised:
        ImageFolder(tmp_path / "out", "train")
    assert "\n" not in str(raised.value)


def test_a_tar_cut_while_it_is_read(source: Path, tmp_path: Path) -> None:
    _shrunk(source, tmp_path / "out")
    tar = tmp_path / "out" / "train" / "00000.tar"
    opened = Shards(tar.parent)
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(UnfitError, match=r"00000\.tar: is truncated"):
        opened.encoded(0)


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    for bad in ({"short": 8}, {"short": 64, "quality": 0}):
        with pytest.raises(ValueError, match=r"must (be at least|lie between)"):
            Shrinking(**bad)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files: use a new directory"):
        _shrunk(source, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _shrunk(tmp_path / "nowhere", tmp_path / "out")
    _shrunk(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "shrink.json").read_text())["short"] == 32
    with pytest.raises(ValueError, match="is already packed; shrink the original images"):
        _shrunk(tmp_path / "out", tmp_path / "again")
    for file in (source / "train").rglob("*.*"):
        file.write_bytes(b"")
    with pytest.raises(UnfitError, match="has no image that can be decoded"):
        _shrunk(source, tmp_path / "none")


def test_reading_needs_no_tar_library(source: Path, tmp_path: Path) -> None:
    _shrunk(source, tmp_path / "out")
    kept = Shards(tmp_path / "out" / "train")
    assert bytes(kept.encoded(6)) == (source / "train" / "cat" / "tiny.png").read_bytes()
    assert torch.equal(ImageFolder(tmp_path / "out", "train")[6][0], read_image(source / "train" / "cat" / "tiny.png"))
