"""`mimbench data check imagenet`: everything wrong with a folder of images in one report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.cls.data.check import check_images
from mimbench.cls.data.check_labels import class_findings
from mimbench.cls.data.crops import open_splits
from mimbench.cls.data.imagenet import real_labels, wnids
from mimbench.engine.data import integrity as decoding
from mimbench.engine.data.datasets import Finding, Report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
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


def test_images_larger_than_pillow_opens_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30 * 40 // 2 - 1)
    assert check_images(folder).findings == []


def test_damaged_lists_and_missing_images_are_findings(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "Fungi"}]
    listed = [{"id": number, "file_name": f"train_val2019/Fungi/0/{number}.png"} for number in (1, 2)]
    _image(tmp_path / "train_val2019" / "Fungi" / "0" / "1.png", 1)
    for split in ("train", "val"):
        labels = [{"image_id": number, "category_id": 0} for number in (1, 2)]
        said = {"categories": categories, "images": listed, "annotations": labels}
        (tmp_path / f"{split}2019.json").write_text(json.dumps(said))
    (tmp_path / "val2019.json").write_text("{}")
    assert [(finding.file, finding.what) for finding in _errors(tmp_path)] == [
        (str(tmp_path / "val2019.json"), "is not an iNaturalist list (KeyError('categories'))"),
        (str(tmp_path / "train_val2019" / "Fungi" / "0" / "2.png"), "does not exist"),
    ]


def test_grey_images_are_noted(folder: Path) -> None:
    grey = folder / "train" / "ant" / "1.jpg"
    Image.open(grey).convert("L").save(grey)
    (note,) = check_images(folder).findings
    assert (note.severity, note.what) == ("note", f"1 of 2 images are not RGB: 1 greyscale ({grey})")


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
    assert [finding.what for finding in report.findings] == [f"has only {split}/"]
    assert report.facts == {"classes": 2, f"{split} images": 2}


def test_no_splits(folder: Path) -> None:
    report = check_images(folder / "train")
    assert not report.failed
    assert [finding.what for finding in report.findings] == ["has no train/ and val/"]
    assert report.facts == {"classes": 2, "images": 2}


# ---------------------------------------------------------------------------------------------------- images and splits


def test_images_that_are_not_rgb_are_counted_by_kind(folder: Path) -> None:
    file = folder / "train" / "ant" / "1.jpg"
    Image.open(file).convert("CMYK").save(file)
    alpha, again = folder / "train" / "bee" / "2.png", folder / "train" / "bee" / "3.png"
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(alpha)
    Image.new("RGBA", (9, 8), (1, 2, 3, 4)).save(again)
    (note,) = check_images(folder).findings
    assert note.severity == "note"
    assert note.what == f"3 of 4 images are not RGB: 1 CMYK ({file}), 2 with alpha ({alpha})"


def test_a_validation_image_that_is_a_training_image(folder: Path) -> None:
    copy = folder / "val" / "bee" / "other name.jpg"
    copy.write_bytes((folder / "train" / "ant" / "1.jpg").read_bytes())
    report = check_images(folder)
    (finding,) = report.findings
    assert (finding.severity, finding.file) == ("warning", str(copy))
    where = f"{copy} is {folder / 'train' / 'ant' / '1.jpg'}"
    assert finding.what == f"1 of 3 validation images are also training images: {where}"
    assert report.facts["val images in train"] == 1


def test_a_validation_split_that_is_the_training_split(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / "val")
    shutil.copytree(folder / "train", folder / "val")
    (finding,) = _errors(folder)
    assert "all validation images are training images" in finding.what
    splits = open_splits(str(folder))
    assert splits.facts()["validation"] == "the training images: the val split is a copy"
    assert "the validation images are training images" in caplog.text
    (folder / "val" / "ant" / "1.jpg").write_bytes((folder / "train" / "bee" / "1.jpg").read_bytes())
    splits = open_splits(str(folder))
    count = len(splits.val)
    assert splits.facts()["validation"] == f"{count - 1} of {count} are training images"


def test_a_damaged_tar_is_one_finding(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "ILSVRC2012_img_train.tar").write_bytes(b"not a tar" * 500)
    (finding,) = _errors(folder)
    assert finding.file == str(folder / "ILSVRC2012_img_train.tar")


# ------------------------------------------------------------------------------------------------------------- labels


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """The first 30 validation images that ReaL gives one label, and a training image of each of their classes."""
    single = [number for number, labels in enumerate(real_labels()) if len(labels) == 1][:30]
    classes = sorted({wnids()[real_labels()[number][0]] for number in single})
    _image(tmp_path / "one.JPEG", 0)
    content = (tmp_path / "one.JPEG").read_bytes()
    for number, wnid in enumerate(classes):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(content + number.to_bytes(2, "big"))
    for number in single:
        wnid = wnids()[real_labels()[number][0]]
        _image(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number + 1:08}.JPEG", 5000 + number)
    return tmp_path


def _serious(report: Report) -> list[str]:
    """What is wrong, apart from how few images and classes there are."""
    found = [finding.what for finding in report.findings if finding.severity == "error"]
    return [what for what in found if "fewer than ImageNet-1k" not in what and "ImageNet-1k has 1000" not in what]


def test_imagenet_with_its_labels_in_order(imagenet: Path) -> None:
    report, classes = check_images(imagenet, "imagenet"), len(list((imagenet / "train").iterdir()))
    assert _serious(report) == []
    assert [finding.what for finding in report.findings] == [
        f"has {classes} classes, but ImageNet-1k has 1000",
        f"has {classes} train images, {1_281_167 - classes:,} fewer than ImageNet-1k",
        "has 30 val images, 49,970 fewer than ImageNet-1k",
    ]
    assert report.facts == {"classes": classes, "train images": classes, "val images": 30}


def test_two_training_classes_with_each_others_names(imagenet: Path) -> None:
    one, two = sorted((imagenet / "train").iterdir())[3:5]
    _swap(one, two)
    report = check_images(imagenet, "imagenet")
    first, second = _serious(report)
    assert f"is labelled {one.name}, but the names of 1 images of this class start with {two.name}" in first
    assert f"is labelled {two.name}" in second
    assert any(f"{one.name} and {two.name} seem swapped" in str(finding) for finding in report.findings)


def test_every_training_class_under_another_name(imagenet: Path) -> None:
    folders = sorted((imagenet / "train").iterdir())
    names = [folder.name for folder in folders]
    for folder in folders:
        folder.rename(folder.with_name(f"old{folder.name}"))
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        (imagenet / "train" / f"old{name}").rename(imagenet / "train" / other)
    found = _serious(check_images(imagenet, "imagenet"))
    assert len(found) == 11
    assert found[-1] == f"{len(names) - 10} more classes have such images"


def test_classes_that_are_missing_are_named() -> None:
    (finding,) = class_findings("imagenet", wnids()[:500] + wnids()[502:], Path("data"))
    assert finding.what == f"has 998 classes, but ImageNet-1k has 1000 ({wnids()[500]}, {wnids()[501]} missing)"


def test_two_validation_classes_with_each_others_names(imagenet: Path) -> None:
    one, two = sorted((imagenet / "val").iterdir())[:2]
    _swap(one, two)
    found = _serious(check_images(imagenet, "imagenet"))
    assert [f"1 images are labelled {one.name}, but ReaL labels 1 of them {two.name}" in found] == [True]
    assert len(found) == 2


def test_a_class_numbered_as_the_kit_would(imagenet: Path) -> None:
    """Every validation label shifted by one, which nothing but ReaL can tell."""
    shifted = sorted((imagenet / "val").iterdir())
    (imagenet / "new").mkdir()
    for place, folder in enumerate(shifted):
        folder.rename(imagenet / "new" / shifted[(place + 1) % len(shifted)].name)
    (imagenet / "val").rmdir()
    (imagenet / "new").rename(imagenet / "val")
    found = _serious(check_images(imagenet, "imagenet"))
    assert found == ["only 0 of 30 labels agree with ReaL; about 90 % of ImageNet's published labels do"]


def test_classes_that_are_none_of_imagenets(imagenet: Path) -> None:
    next((imagenet / "train").iterdir()).rename(imagenet / "train" / "tench")
    shutil.rmtree(imagenet / "val")
    (finding,) = [found for found in check_images(imagenet, "imagenet").findings if "not in ImageNet-1k" in found.what]
    assert finding.what == "1 classes are not in ImageNet-1k: tench"


def test_numbered_folders_sort_as_texts(tmp_path: Path) -> None:
    for number in range(12):
        _image(tmp_path / "train" / str(number) / "1.png", number)
        _image(tmp_path / "val" / str(number) / "1.png", 100 + number)
    (finding,) = check_images(tmp_path).findings
    assert (finding.severity, finding.what) == (
        "warning",
        "class names are numbers, which are sorted as text: 0, 1, 10",
    )
    assert "numbers are sorted as text, so labels are wrong" in str(check_images(tmp_path, "imagenet").findings)


def test_what_a_published_set_should_hold(folder: Path) -> None:
    found = check_images(folder, "cifar10").findings
    assert [finding.what for finding in found] == [
        "has 2 classes, but CIFAR-10 has 10",
        "orders its classes ant, bee, ..., but CIFAR-10 orders them airplane, automobile, bird, ...",
        "has 2 train images, 49,998 fewer than CIFAR-10",
        "has 2 val images, 9,998 fewer than CIFAR-10",
    ]


def _swap(one: Path, two: Path) -> None:
    one.rename(one.with_name("swapped"))
    two.rename(one)
    one.with_name("swapped").rename(two)


def test_many_empty_classes_are_one_finding(folder: Path) -> None:
    for name in ("cat", "dog", "eel", "fox"):
        (folder / "train" / name).mkdir()
    found = check_images(folder).findings
    assert [finding.what for finding in found] == ["4 classes have no images: cat, dog, eel, ..."] * 2
