"""Where annotation files and images are found, whatever wrote them; what is not found is named with what to do."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench.det.data.check import check_coco
from mimbench.det.data.coco import read_split
from mimbench.engine.data.datasets import coco_files

LAYOUTS = {  # annotation file and folder of images of train, and of val
    "CVAT": (
        ("annotations/instances_Train.json", "images/Train"),
        ("annotations/instances_Validation.json", "images/Validation"),
    ),
    "CVAT in capitals": (("Annotations/instances_TRAIN.json", "TRAIN"), ("Annotations/instances_VAL.json", "VAL")),
    "CVAT, split by split": (
        ("train/annotations/instances_default.json", "train/images/default"),
        ("val/annotations/instances_default.json", "val/images/default"),
    ),
    "COCO 2014": (
        ("annotations/instances_train2014.json", "train2014"),
        ("annotations/instances_val2014.json", "val2014"),
    ),
    "Roboflow": (("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
    "Label Studio": (("train/result.json", "train/images"), ("val/result.json", "val/images")),
    "loose": (("train.json", "images/train"), ("val.json", "images/val")),
    "all in one": (("instances_train.json", "."), ("instances_valid.json", ".")),
    "one JSON in each": (("Train/labels_v3.json", "Train"), ("Validation/export.JSON", "Validation")),
    "by a word": (
        ("annotations/birds-training-final.json", "images"),
        ("annotations/birds-Validation-final.json", "images"),
    ),
    "camel case": (("myTrain.json", "images"), ("myVal.json", "images")),
}


def _arranged(root: Path, sound: Path, layout: str) -> None:
    for split, (listed, images) in zip(("train", "val"), LAYOUTS[layout], strict=True):
        for file in (root / listed, root / images / "x"):
            file.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads((sound / "annotations" / f"instances_{split}2017.json").read_text())
        for image in content["images"]:
            name = f"{split}-{image['file_name']}"
            (root / images / name).write_bytes((sound / f"{split}2017" / image["file_name"]).read_bytes())
            image["file_name"] = name
        (root / listed).write_text(json.dumps(content))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_found(make_coco, tmp_path: Path, layout: str) -> None:
    root = tmp_path / "other"
    _arranged(root, make_coco(2), layout)
    for split, (listed, images) in zip(("train", "val"), LAYOUTS[layout], strict=True):
        read = read_split(root, split)
        assert read.files.annotations == root / listed
        assert read.files.images.samefile(root / images)
        assert read.read_image(0).shape == (3, 48, 64)
    assert not check_coco(root).failed


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["annotations/instances_default.json"], "found annotations/instances_default.json: rename the right file"),
        (["train/_annotations.coco.json", "test/_annotations.coco.json"], "test/_annotations.coco.json"),
        (
            ["annotations/a-train.json", "annotations/b-train.json"],
            "annotations/a-train.json, annotations/b-train.json",
        ),
        (
            ["dataset.json"],
            "found dataset.json: rename the right file so that its name or folder contains train or val",
        ),
        (["trainval.json"], "found trainval.json"),
        ([], "annotations/train.json and val.json beside images/"),
    ],
)
def test_what_is_there_instead_is_named(tmp_path: Path, names: list[str], expected: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for kind in ("captions", "person_keypoints"):
        (tmp_path / f"{kind}_val2017.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json does not exist") as raised:
        read_split(tmp_path, "val")
    assert expected in str(raised.value)
    assert "captions" not in str(raised.value)
    assert any(expected in str(finding) for finding in check_coco(tmp_path).findings)


NAMES: dict[str, Callable[[Path, str], str]] = {  # what a file calls an image, by the folder it is in and its name
    "absolute": lambda folder, name: str(folder / name),
    "absolute elsewhere": lambda folder, name: f"/home/somebody/data/{folder.name}/{name}",
    "Windows": lambda folder, name: f"images\\{folder.name}\\{name}",
    "a drive": lambda folder, name: f"C:\\Users\\me\\{folder.name}\\{name}",
    "a drive with slashes": lambda folder, name: f"D:/data/{name}",
    "from the root": lambda folder, name: f"{folder.name}/{name}",
    "from here": lambda folder, name: f"./{name}",
    "from above": lambda folder, name: f"../{folder.name}/{name}",
    "another case": lambda folder, name: name.upper(),
    "escaped": lambda folder, name: name.replace(" ", "%20"),
    "another form of accents": lambda folder, name: unicodedata.normalize("NFD", name),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_images_are_found(make_coco, edit, kind: str) -> None:
    root = make_coco(3)
    files = coco_files(root, "train")
    expected = read_split(root, "train").read_image(1)

    def rename(content) -> None:
        for image in content["images"]:
            name = unicodedata.normalize("NFC", f"é {image['file_name']}")
            (files.images / image["file_name"]).rename(files.images / name)
            image["file_name"] = NAMES[kind](files.images, name)

    edit(files.annotations, rename)
    split = read_split(root, "train")
    assert (split.read_image(1) == expected).all()
    report = check_coco(root)
    assert not report.failed
    assert len(report.findings) == (kind not in ("from here", "from above"))  # which is where they are


def test_images_of_the_other_split_are_never_taken(make_coco) -> None:
    """Both folders have images of the same names."""
    root = make_coco(2)
    for image in (root / "train2017").iterdir():
        image.unlink()
    errors = [finding for finding in check_coco(root).findings if finding.severity == "error"]
    assert len(errors) == 1
    assert errors[0].file == str(root / "train2017" / "2.png")
    assert "(and 1 more like it: 1.png)" in errors[0].what
    (root / "train2017").rmdir()
    with pytest.raises(ValueError, match="train2017: does not exist"):
        read_split(root, "train")


def test_folders_that_may_hold_something_else_are_not_chosen_between(make_coco) -> None:
    """Masks may have the names of the images: of two folders with all the names, neither is taken."""
    root = make_coco(2)
    (root / "train2017").rename(root / "pictures of them")
    assert read_split(root, "train").files.images == root / "pictures of them"
    (root / "masks").mkdir()
    for name in ("1.png", "2.png"):
        (root / "masks" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="train2017: does not exist"):
        read_split(root, "train")
    (root / "pictures of them").rename(root / "images")
    assert read_split(root, "train").files.images == root / "images"


def test_a_missing_image_does_not_hide_where_the_others_are(make_coco, edit) -> None:
    root = make_coco(4)
    files = coco_files(root, "train")
    edit(
        files.annotations,
        lambda content: [one.update(file_name=f"C:\\{one['file_name']}") for one in content["images"]],
    )
    (files.images / "2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png: does not exist, but is image 2 of"):
        read_split(root, "train")


def test_an_image_with_another_ending_is_named(make_coco, edit) -> None:
    root = make_coco(1)
    edit(coco_files(root, "train").annotations, lambda content: content["images"][0].update(file_name="1.jpg"))
    with pytest.raises(ValueError, match=r"1\.jpg: does not exist, .*; 1\.png exists: correct file_name"):
        read_split(root, "train")


def test_two_images_never_become_one(make_coco, edit) -> None:
    """a/1.png and b/1.png are not both 1.png."""
    root = make_coco(2)
    names = iter(("a/1.png", "b/1.png"))
    edit(coco_files(root, "train").annotations, lambda c: [one.update(file_name=next(names)) for one in c["images"]])
    with pytest.raises(ValueError, match="does not exist"):
        read_split(root, "train")
