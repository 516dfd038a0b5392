"""The generated data set: the same bytes each time, no scan in both splits, masks where the ink is, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.data.handwritten_coco import INSIDE, outlines, rasterise, run_lengths
from mimbench.engine.data.handwritten_material import Backgrounds, Material, bundled

SMALL = Sizes(train=40, val=20, side=24, coco_train=40, coco_val=8, coco_side=96)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_handwritten(tmp_path_factory.mktemp("data") / "handwritten", seed=3, sizes=SMALL)


def _digest(directory: Path) -> str:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    whole = b"".join(str(file.relative_to(directory)).encode() + file.read_bytes() for file in files)
    return hashlib.sha256(whole).hexdigest()


def test_another_process_writes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mimbench.engine.data.handwritten import *; "
        f"make_handwritten(sys.argv[1], seed=3, sizes={SMALL!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], cwd=root, env=environment, check=True)
    assert _digest(tmp_path / "again") == _digest(small)


def test_another_seed_writes_others_and_more_images_leave_the_first_ones(small: Path, tmp_path: Path) -> None:
    few = Sizes(train=10, val=10, side=24, coco_train=8, coco_val=8, coco_side=96)
    make_handwritten(tmp_path / "few", seed=3, sizes=few)
    make_handwritten(tmp_path / "other", seed=4, sizes=few)
    for name in ("images/train/7/00007.png", "coco/val2017/000000000002.jpg"):
        assert (tmp_path / "few" / name).read_bytes() == (small / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (small / name).read_bytes()


def test_classes_and_sizes(small: Path) -> None:
    for split, images in (("train", 40), ("val", 20)):
        folders = sorted((small / "images" / split).iterdir())
        assert [folder.name for folder in folders] == [str(digit) for digit in range(10)]
        assert {len(list(folder.iterdir())) for folder in folders} == {images // 10}
    with Image.open(small / "images" / "train" / "0" / "00000.png") as image:
        assert (image.size, image.mode) == ((24, 24), "RGB")
        assert "icc_profile" not in image.info
    assert json.loads((small / "about.json").read_text())["seed"] == 3


def test_scans_are_those_of_scikit_learn_and_in_one_split_only() -> None:
    from sklearn.datasets import load_digits

    digits, (scans, targets, photographs) = load_digits(), bundled()
    assert np.array_equal(scans, (digits.images * (255 / 16)).astype(np.uint8))
    assert np.array_equal(targets, digits.target)
    assert len(photographs) == 2
    material = Material(0)
    seen = {split: [scan.tobytes() for kind in kinds for scan in kind] for split, kinds in material.scans.items()}
    assert sorted(seen["train"] + seen["val"]) == sorted(scan.tobytes() for scan in scans)
    assert not set(seen["train"]) & set(seen["val"])
    assert 0.18 < len(seen["val"]) / len(scans) < 0.21


@pytest.fixture(scope="module")
def coco(small: Path) -> COCO:
    return COCO(str(small / "coco" / "annotations" / "instances_train2017.json"))


def test_every_kind_of_annotation_is_there(coco: COCO) -> None:
    annotations: list[dict[str, Any]] = list(coco.anns.values())
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    objects = [annotation for annotation in annotations if not annotation["iscrowd"]]
    polygons = [annotation for annotation in objects if isinstance(annotation["segmentation"], list)]
    assert len(crowds) == 2
    assert all(isinstance(crowd["segmentation"]["counts"], list) for crowd in crowds)
    assert len(polygons) > len(objects) / 2
    assert len(objects) > len(polygons)
    assert sum(not coco.imgToAnns[image] for image in coco.imgs) == 2
    assert len(coco.cats) == 10
    assert sorted(coco.anns) == list(range(1, len(annotations) + 1))


def test_masks_lie_where_the_ink_is(coco: COCO, small: Path) -> None:
    for image_id, image in coco.imgs.items():
        pixels = np.asarray(Image.open(small / "coco" / "train2017" / image["file_name"]).convert("L"))
        assert pixels.shape == (image["height"], image["width"]) == (96, 96)
        together = np.zeros(pixels.shape, dtype=int)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation).astype(bool)
            x, y, width, height = annotation["bbox"]
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == mask.sum() > 0
            assert x - 1 <= columns.min() <= x + 2
            assert columns.max() + 1 == pytest.approx(x + width, abs=1.5)
            assert y - 1 <= rows.min() <= y + 2
            assert rows.max() + 1 == pytest.approx(y + height, abs=1.5)
            assert annotation["iscrowd"] or pixels[mask].mean() > 130
            together += mask
        assert together.max(initial=0) <= 2, "strokes do not touch, but for a pixel on the edge"
        assert (together > 1).mean() < 0.002


def test_an_outline_is_that_of_the_strokes() -> None:
    ring = np.zeros((40, 40), dtype=np.uint8)
    rows, columns = np.mgrid[:40, :40] + 0.5
    distance = np.hypot(rows - 20, columns - 20)
    ring[(distance < 15)] = 255
    (disc,), hole = outlines(ring)
    mask = rasterise([disc.reshape(-1).tolist()], ring.shape)
    assert hole == 0
    assert (mask != (ring >= INSIDE)).mean() < 0.02
    ring[distance < 6] = 0
    assert outlines(ring)[1] == pytest.approx((6 / 15) ** 2, rel=0.1)


def test_run_lengths_are_those_of_pycocotools() -> None:
    from pycocotools import mask as coco_mask

    for seed in range(4):
        mask = np.random.default_rng(seed).random((7, 5)) < 0.5
        encoded = run_lengths(mask)
        assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(encoded, 7, 5)), mask)
    assert run_lengths(np.ones((2, 2), dtype=bool)) == {"counts": [0, 4], "size": [2, 2]}


def test_what_is_there_already_is_left_alone(small: Path) -> None:
    before = _digest(small)
    with pytest.raises(FileExistsError, match="exists already"):
        make_handwritten(small, sizes=SMALL)
    assert _digest(small) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    write, written = Path.write_bytes, []

    def fail(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 20:
            raise error
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(type(error)) as raised:
        make_handwritten(tmp_path / "data", sizes=SMALL)
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert str(raised.value) == f"[Errno 28] No space left on device: '{tmp_path / 'data'}'"


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="coco_side=10 must be at least 64"):
        Sizes(coco_side=10)
    with pytest.raises(ValueError, match="side=500"):
        Backgrounds(bundled()[2], 500)
