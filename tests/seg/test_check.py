"""`mimbench data check seg`: faults of users' copies, found and named with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.seg.data.check import SHOWN, check_segmentation


def _said(root: Path) -> str:
    return "\n".join(str(finding) for finding in check_segmentation(root).findings)


def test_sound_data(make_pairs, make_ade) -> None:
    report = check_segmentation(make_pairs(3))
    assert not report.findings
    assert report.facts == {"train images": 3, "val images": 3, "classes": 3}
    ade = check_segmentation(make_ade(2))
    assert not ade.failed
    assert "147 of 150 classes" in str(ade.findings[0])


def test_faults_are_named(make_pairs) -> None:
    root = make_pairs(9)
    place = root / "labels" / "train"
    ids = np.array(Image.open(place / "000.png"))
    Image.fromarray(ids).convert("RGB").save(place / "000.png")
    Image.fromarray(ids.astype(np.uint16)).save(place / "001.png")
    Image.fromarray(np.where(ids == 2, 3, ids).astype(np.uint8)).save(place / "002.png")
    Image.fromarray(ids[:-1]).save(place / "003.png")
    Image.fromarray(np.full_like(ids, 255)).save(place / "004.png")
    (place / "005.png").unlink()
    (place / "006.png").write_bytes(b"\x89PNG")
    (root / "images" / "train" / "007.png").write_bytes(b"")
    report = check_segmentation(root)
    assert report.failed
    said = _said(root)
    for file, what in (
        ("000", "colour image"),
        ("001", "16 bits"),
        ("002", "id 3"),
        ("003", "64 x 47 pixels"),
        ("004", "no labelled pixel"),
        ("005", "does not exist"),
        ("006", "not an image"),
        ("007", "not an image"),
    ):
        assert any(f"{file}.png" in line and what in line for line in said.splitlines()), (file, what)


def test_another_data_set_and_many_of_one_fault(make_pairs, tmp_path) -> None:
    (tmp_path / "full" / "images" / "ADE" / "training").mkdir(parents=True)
    [finding] = check_segmentation(tmp_path / "full").findings
    assert "ADE20K_2021" in finding.what
    root = make_pairs(SHOWN + 5)
    for file in (root / "labels" / "val").iterdir():
        file.unlink()
    said = _said(root).splitlines()
    assert sum("does not exist" in line and "every image needs its label map" in line for line in said) == SHOWN
    assert any("labels/val: 5 more files" in line for line in said)
    assert any("has no labelled pixel in any map" in line for line in said)


@pytest.mark.parametrize("names", ["ground\ndisc\n", "ground\n"])
def test_lists_of_classes_that_are_too_short(names: str, make_pairs) -> None:
    root = make_pairs(1)
    (root / "classes.txt").write_text(names)
    assert check_segmentation(root).failed
