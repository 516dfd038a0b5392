"""Names of data sets: where they are looked for, what is said when they lead nowhere, and that one is written once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mimbench.engine.data import datasets, handwritten
from mimbench.engine.data.datasets import (
    CocoFiles,
    Finding,
    UnfitError,
    add,
    coco_files,
    coco_root,
    image_root,
    is_named,
    listing,
    locate,
    require,
    shards_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / 'a "quoted" place'
    directory.mkdir()
    return directory


def test_a_name_is_kept_and_found(folder: Path) -> None:
    assert add("imagenet", folder) == folder
    assert locate("imagenet") == folder
    assert listing()["imagenet"] == folder
    assert add("imagenet", folder.parent) == locate("imagenet")


def test_names_come_before_folders_of_the_same_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("imagenet", folder)
    (folder.parent / "imagenet").mkdir()
    monkeypatch.chdir(folder.parent)
    assert locate("imagenet") == folder
    assert locate("./imagenet") == Path("imagenet")


def test_the_environment_goes_before_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("coco-2017", folder.parent)
    monkeypatch.setenv("MIMBENCH_DATA_COCO_2017", str(folder))
    assert locate("coco-2017") == listing()["coco-2017"] == folder


def test_a_path_is_itself(folder: Path) -> None:
    assert locate(folder) == locate(str(folder)) == folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagnet", "did you mean imagenet"),
        ("/no/such/place", "the names are handwritten, imagenet"),
        (str(Path(__file__)), "is a file"),
    ],
)
def test_what_leads_nowhere_says_where_to_go(folder: Path, name: str, expected: str) -> None:
    add("imagenet", folder)
    with pytest.raises(FileNotFoundError, match=expected):
        locate(name)


def test_a_place_that_has_gone_is_named_with_who_sent_us_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("imagenet", folder)
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=r"not a directory, but .*datasets\.toml"):
        locate("imagenet")
    monkeypatch.setenv("MIMBENCH_DATA_COCO", "/no/such/place")
    with pytest.raises(FileNotFoundError, match="MIMBENCH_DATA_COCO names it"):
        locate("coco")


def test_names_that_cannot_be(folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        add("a/b", folder)
    with pytest.raises(ValueError, match="'handwritten' is reserved"):
        add("handwritten", folder)
    with pytest.raises(FileNotFoundError, match="not a directory"):
        add("imagenet", folder / "nothing")
    assert not datasets.settings_file().exists()


@pytest.mark.parametrize("text", ["imagenet = ", "imagenet = 3"])
def test_a_damaged_file_of_names(text: str) -> None:
    datasets.settings_file().parent.mkdir(parents=True)
    datasets.settings_file().write_text(text)
    with pytest.raises(ValueError, match=r"datasets\.toml"):
        locate("imagenet")


def test_handwritten_is_written_once_by_two_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(directory: Path) -> None:
        calls.append(directory)
        threading.Event().wait(0.2)
        directory.mkdir(parents=True)

    monkeypatch.setattr(handwritten, "make_handwritten", make)
    assert "handwritten" in listing()
    threads = [threading.Thread(target=locate, args=("handwritten",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [locate("handwritten")] == [listing()["handwritten"]]


def test_names_of_the_environment_alone_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_DATA_SMALL_BIRDS", str(tmp_path))
    assert listing()["small_birds"] == tmp_path
    assert is_named("small-birds")
    monkeypatch.setenv("MIMBENCH_DATA_SMALL_BIRDS", "")
    assert "small_birds" not in listing()
    assert not is_named("small-birds")


def test_both_views_in_one_directory(tmp_path: Path) -> None:
    assert image_root(tmp_path) == coco_root(tmp_path) == tmp_path
    (tmp_path / "images" / "val").mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    assert image_root(tmp_path) == tmp_path / "images"
    files = coco_files(tmp_path, "val")
    assert files.annotations == tmp_path / "coco" / "annotations" / "instances_val2017.json"
    assert files.images == tmp_path / "coco" / "val2017"


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/instances_val.json", "val"),
        ("annotations/instances_validation.json", "images"),
        ("annotations/val.json", "images/val"),
        ("valid/_annotations.coco.json", "valid"),
        ("validation/labels.json", "validation/data"),
    ],
)
def test_layouts_with_coco_annotations(tmp_path: Path, annotations: str, images: str) -> None:
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / annotations).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / annotations).touch()
    assert coco_files(tmp_path, "val") == CocoFiles(tmp_path / annotations, tmp_path / images)
    assert not coco_files(tmp_path, "train").annotations.exists()


def test_annotations_without_images_name_the_folder_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").touch()
    assert coco_files(tmp_path, "train").images == tmp_path / "images" / "train"


def test_require_stops_at_the_first_error() -> None:
    require([Finding("warning", "a", "is odd", ""), Finding("note", "b", "is grey", "")])
    with pytest.raises(UnfitError, match=r"^c: is gone; find it$") as raised:
        require([Finding("warning", "a", "is odd", ""), Finding("error", "c", "is gone", "find it")])
    assert raised.value.finding.file == "c"


def test_shards_named_by_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"in-{split}-{number:03}.tar" for split in ("train", "val") for number in (9, 10)]
    for name in (*names, "more.tar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    pattern = locate("in-{train,val}-{009..010}.tar::more.tar")
    assert [tar.name for tar in shards_of(pattern)] == [*names, "more.tar"]
    assert all(tar.is_absolute() for tar in shards_of(pattern))
    assert locate(str(pattern)) == pattern
    with pytest.raises(FileNotFoundError, match=r"in-val-011\.tar .*shard 3 of 3"):
        shards_of(locate("in-val-{009..011}.tar"))
    with pytest.raises(FileNotFoundError, match="is a file"):
        locate("more.tar")


@pytest.mark.parametrize("pattern", ["a-{000..}.tar", "a-{1}.tar", "a-{1..2.tar"])
def test_braces_that_say_nothing(pattern: str) -> None:
    with pytest.raises(ValueError, match="braces must hold a range"):
        shards_of(pattern)
