"""`mimbench data check coco`, and what a run refuses: one thing made wrong at a time in a sound data set."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
import pytest
from PIL import Image

from mimbench.det.data import annotations
from mimbench.det.data.annotations import annotation_findings
from mimbench.det.data.check import check_coco
from mimbench.engine.data.datasets import UnfitError, coco_files, require

Content = dict[str, Any]
COLUMN = (20.0, 0.0, 1.0, 30.0)  # the box of the run lengths


def _content() -> Content:
    """Two images; a polygon, a crowd region and an object as compressed run lengths."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 30, "width": 40},
            {"id": 9, "file_name": "b.jpg", "height": 30, "width": 40},
        ],
        "categories": [{"id": 1, "name": "one"}, {"id": 90, "name": "ninety"}],
        "annotations": [
            _annotation(1, [[1, 1, 11, 1, 11, 11]]),
            {**_annotation(2, {"counts": [600, 30, 570], "size": [30, 40]}, COLUMN), "iscrowd": 1},
            _annotation(3, {"counts": "hb0n0ja0", "size": [30, 40]}, COLUMN),
        ],
    }


def _annotation(number: int, segmentation: Any, box: tuple[float, ...] = (1.0, 1.0, 10.0, 10.0)) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 7,
        "category_id": 90,
        "bbox": list(box),
        "area": 30,
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def _write(root: Path, content: Any) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(
            json.dumps(content if split == "train" else _content())
        )
        for name in ("a.jpg", "b.jpg"):
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / name)


def test_nothing_to_say(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    report = check_coco(tmp_path)
    assert report.findings == []
    assert report.facts == {
        "categories": 2,
        "train images": 2,
        "train images without annotations": 1,
        "train objects": 2,
        "train crowd regions": 1,
        "val images": 2,
        "val images without annotations": 1,
        "val objects": 2,
        "val crowd regions": 1,
    }


def _set(name: str, place: int, **values: Any) -> Callable[[Content], Any]:
    return lambda content: content[name][place].update(values)


FAULTS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "dangling image id": (
        _set("annotations", 0, image_id=99),
        "annotation 1 refers to image 99, which is not in the list of images",
    ),
    "unknown category": (
        _set("annotations", 0, category_id=91),
        "annotation 1 has category_id 91, which is not one of the 2 categories",
    ),
    "no polygon": (_set("annotations", 0, segmentation=[]), "annotation 1 has an empty polygon"),
    "empty polygon": (_set("annotations", 0, segmentation=[[]]), "annotation 1 has an empty polygon"),
    "two points": (_set("annotations", 0, segmentation=[[1, 2, 3, 4]]), "annotation 1 has a polygon of 4 numbers"),
    "odd numbers": (
        _set("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 1 has a polygon of 7 numbers",
    ),
    "words": (
        _set("annotations", 0, segmentation=[["x"] * 6]),
        "annotation 1 has a polygon that is not a list of numbers",
    ),
    "no segmentation": (
        lambda content: content["annotations"][0].pop("segmentation"),
        "annotations[0] (id 1) has no valid segmentation; add segmentation",
    ),
    "box outside": (
        _set("annotations", 0, bbox=[41, 2, 5, 5]),
        "annotation 1 has bbox [41, 2, 5, 5], outside its image of 40 x 30",
    ),
    "negative box": (_set("annotations", 0, bbox=[5, 2, -5, 5]), "annotation 1 has bbox [5, 2, -5, 5], outside"),
    "box of three": (
        _set("annotations", 0, bbox=[1, 2, 3]),
        "annotations[0] (id 1) has no valid bbox; bbox is [1, 2, 3]",
    ),
    "not a number": (_set("annotations", 0, bbox=[1, 2, 3, float("nan")]), "has no valid bbox"),
    "mask of another size": (
        _set("annotations", 1, segmentation={"counts": [1200], "size": [40, 30]}),
        "annotation 2 has a mask of size [40, 30] in an image of [30, 40]",
    ),
    "runs too short": (
        _set("annotations", 1, segmentation={"counts": [600, 30], "size": [30, 40]}),
        "annotation 2 has run lengths that do not fill the image",
    ),
    "compressed runs too short": (
        _set("annotations", 2, segmentation={"counts": "bb0n0Z1", "size": [30, 40]}),
        "annotation 3 has compressed run lengths that do not fill the image; they must add up to 1200",
    ),
    "compressed runs cut short": (
        _set("annotations", 2, segmentation={"counts": "hb0n0ja", "size": [30, 40]}),
        "annotation 3 has compressed run lengths that do not fill the image",
    ),
    "no compressed runs": (
        _set("annotations", 2, segmentation={"counts": "\u00e9 ~", "size": [30, 40]}),
        "annotation 3 has compressed run lengths that do not fill the image",
    ),
    "area that is no number": (
        _set("annotations", 1, area=None),
        "annotations[1] (id 2) has no valid area; area is None",
    ),
    "crowd that is a word": (
        _set("annotations", 0, iscrowd="0"),
        "annotations[0] (id 1) has no valid iscrowd; iscrowd is '0'",
    ),
    "no counts": (_set("annotations", 1, segmentation={"size": [30, 40]}), "annotation 2 has a mask without counts"),
    "two annotations of one id": (_set("annotations", 0, id=2), "annotations has id 2 twice"),
    "two images of one id": (_set("images", 0, id=9), "images has id 9 twice"),
    "two categories of one id": (_set("categories", 0, id=90), "categories has id 90 twice"),
    "image without size": (_set("images", 0, height=None), "images[0] (id 7) has no valid height"),
    "no categories": (lambda content: content["categories"].clear(), "has an empty list of categories"),
    "no list of images": (lambda content: content.pop("images"), "has no list of images"),
    "an entry that is none": (
        lambda content: content["annotations"].append(5),
        "annotations[3] (id None) has no valid id",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_found_by_the_check_and_stops_a_run(tmp_path: Path, name: str) -> None:
    make, expected = FAULTS[name]
    content = _content()
    make(content)
    _write(tmp_path, content)
    report = check_coco(tmp_path)
    assert report.failed
    first = next(finding for finding in report.findings if finding.severity == "error")
    assert first.file.endswith("instances_train2017.json")
    assert expected in str(first)
    with pytest.raises(UnfitError) as raised:
        require(annotation_findings(content, coco_files(tmp_path, "train")))
    assert str(raised.value) == str(first)
    assert "\n" not in str(first)


@pytest.mark.parametrize("seed", range(4))
def test_any_compressed_mask_is_sound(seed: int) -> None:
    """Runs of every length, beyond those of one character, and lengths that fall and rise."""
    rng = np.random.default_rng(seed)
    height, width = 60 + 300 * seed, 80 + 400 * seed
    content = _content()
    content["images"][0].update(height=height, width=width)
    for coarse in (1, 3, 40):
        blocks = rng.random((-(-height // coarse), -(-width // coarse))) < rng.random()
        bitmap = np.kron(blocks, np.ones((coarse, coarse), dtype=np.uint8))[:height, :width].astype(np.uint8)
        region = coco_masks.encode(np.asfortranarray(bitmap))
        text = {"size": [height, width], "counts": region["counts"].decode()}
        content["annotations"] = [_annotation(1, text)]
        assert not [fault for fault in annotation_findings(content, _files()) if "run lengths" in fault.what]
        content["annotations"] = [_annotation(1, {**text, "counts": text["counts"] + "1"})]  # one pixel, or one less
        assert [fault for fault in annotation_findings(content, _files()) if "do not fill" in fault.what]


def _files() -> Any:
    return coco_files(Path("nowhere"), "train")


def test_what_a_run_could_not_be_trained_or_measured_on(tmp_path: Path) -> None:
    content = _content()
    content["categories"].append({"id": 3, "name": "three"})
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    _write(tmp_path, content)
    train, val = (str(coco_files(tmp_path, split).annotations) for split in ("train", "val"))
    assert [(finding.severity, finding.file, finding.what) for finding in check_coco(tmp_path).findings] == [
        ("error", train, "has no objects to train on"),
        ("error", val, "does not have all categories of instances_train2017.json (missing ids [3])"),
    ]
    _write(tmp_path, _content())
    nothing = {**_content(), "annotations": []}
    Path(val).write_text(json.dumps(nothing))
    (finding,) = check_coco(tmp_path).findings
    assert (finding.severity, finding.file, finding.what) == ("warning", val, "has no objects")


def test_content_that_is_no_annotation_file(tmp_path: Path) -> None:
    _write(tmp_path, [1, 2])
    (finding,) = check_coco(tmp_path).findings
    assert finding.what == "is not a COCO annotation file"
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text('{"images": [')
    (finding,) = check_coco(tmp_path).findings
    assert finding.severity == "error"
    assert "instances_train2017.json" in str(finding)
    assert "JSON" in str(finding)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([11, 1, 0, 10], "annotation 1 has bbox [11, 1, 0, 10] without area"),  # COCO train2017 has some
        ([30, 1, 15, 5], "annotation 1 has bbox [30, 1, 15, 5], partly outside its image of 40 x 30"),
        ([30, 1, 10.5, 5], None),
    ],
)
def test_quirks_of_coco_are_no_errors(tmp_path: Path, box: list[float], expected: str | None) -> None:
    content = _content()
    x, y, width, height = box
    polygon = [x, y, min(x + width, 40), y, min(x + width, 40), y + height]
    content["annotations"][0].update(bbox=box, segmentation=[polygon], area=width * height / 2)
    _write(tmp_path, content)
    report = check_coco(tmp_path)
    assert not report.failed
    assert [finding.what for finding in report.findings] == ([expected] if expected else [])


def test_images_are_read_to_the_end(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    missing, cut = tmp_path / "train2017" / "a.jpg", tmp_path / "train2017" / "b.jpg"
    other = tmp_path / "val2017" / "b.jpg"
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-100])
    Image.new("L", (40, 31)).save(other)
    report = check_coco(tmp_path)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [(finding.file, finding.what.split(",")[0]) for finding in errors] == [
        (str(missing), "does not exist"),
        (str(cut), "the image is cut short"),
        (str(other), "is 40 x 31"),
    ]
    assert report.findings[-1].severity == "note"


def test_an_image_turned_by_its_camera_has_the_size_people_see(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(tmp_path / "train2017" / "a.jpg", exif=exif)
    assert check_coco(tmp_path).findings == []


def test_layouts(tmp_path: Path) -> None:
    (finding,) = check_coco(tmp_path).findings
    assert finding.what.startswith("has no annotations/instances_train2017.json")
    _write(tmp_path / "coco", _content())
    assert check_coco(tmp_path).findings == []
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").unlink()
    (finding,) = check_coco(tmp_path).findings
    assert (finding.severity, finding.what) == ("warning", "has annotations only for train")
    (tmp_path / "coco" / "train2017").rename(tmp_path / "coco" / "elsewhere")
    found = check_coco(tmp_path).findings
    assert [finding.severity for finding in found] == ["warning", "note"]  # the one folder that holds them
    assert found[1].remedy == f"the images are read from {tmp_path / 'coco' / 'elsewhere'}, the first as a.jpg"
    (tmp_path / "coco" / "elsewhere" / "b.jpg").unlink()
    (error,) = [finding for finding in check_coco(tmp_path).findings if finding.severity == "error"]
    assert (error.file, error.what) == (str(tmp_path / "coco" / "train2017"), "does not exist")


ODD: tuple[Any, ...] = (
    0, 1, -1, 2**31, 2**80, True, False, None, "", "x", 1.5, math.nan, math.inf, [], [1, 2, 3, 4], [1, 2, 3, math.nan],
    [1, 2, 3, "4"], [1, 2, 3], [0, 0, 2**2000, 1], {}, (1, 2, 3, 4), 10**400,
)  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "images": {"id": 1, "file_name": "a.jpg", "height": 5, "width": 6},
    "categories": {"id": 1, "name": "c"},
    "annotations": {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1.5, 2], "segmentation": [[0, 0, 1, 1, 2, 2]],
        "area": 1.0, "iscrowd": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_passes_at_once_passes_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, keys, usual = random.Random(0), annotations._LISTS[name], annotations._usual
    monkeypatch.setattr(annotations, "_usual", lambda *_: False)
    passed = 0
    for _ in range(1500):
        entries = [dict(GOOD[name]) for _ in range(3)]
        for _ in range(draw.randrange(3)):
            entry, key = draw.choice(entries), draw.choice(list(keys))
            if draw.random() < 0.2:
                entry.pop(key, None)
            else:
                entry[key] = draw.choice(ODD)
        faults = list(annotations._entries(name, entries, keys, "file"))
        if usual(entries, keys):
            passed += 1
            assert faults == [], entries
    assert 300 < passed < 1400
