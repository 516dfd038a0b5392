"""The fingerprint of a data set: other content is another one, and another place or machine is not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench.engine.data import content
from mimbench.engine.data.content import Part, fingerprint
from mimbench.engine.data.layouts.parts import image_parts

LONG_AGO = time.time() - 1000


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Class folders with a list of labels beside them, all written some time ago."""
    root = tmp_path / "data"
    for split, classes in (("train", "abc"), ("val", "ab")):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                (root / split / name / f"{number}.jpg").write_bytes(f"{split}{name}{number}".encode())
    (root / "val.txt").write_text("0.jpg 0\n")
    _age(root)
    return root


def _age(root: Path, moment: float = LONG_AGO) -> None:
    for path in [*root.rglob("*"), root]:
        os.utime(path, (moment, moment))


def _of(root: Path) -> str:
    return fingerprint(image_parts(root, ("train", "val")))


def _replace(root: Path) -> None:
    (root / "train/a/0.jpg").write_bytes(b"other0")


def _relabel(root: Path) -> None:
    (root / "train/a/0.jpg").rename(root / "train/b/9.jpg")


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image is added": lambda root: (root / "val/a/3.jpg").write_bytes(b"more"),
    "an image is removed": lambda root: (root / "train/a/1.jpg").unlink(),
    "an image is renamed": lambda root: (root / "train/a/1.jpg").rename(root / "train/a/7.jpg"),
    "an image moves to another class": _relabel,
    "an image is overwritten in place": _replace,
    "a class is added": lambda root: shutil.copytree(root / "val/a", root / "val/c"),
    "a label is corrected": lambda root: (root / "val.txt").write_text("0.jpg 1\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_another_content_is_another_fingerprint(folders: Path, change: Callable[[Path], object]) -> None:
    before = _of(folders)
    change(folders)
    assert _of(folders) != before


def test_place_time_and_other_files_do_not_count(folders: Path, tmp_path: Path) -> None:
    before = _of(folders)
    (folders / "train/a/.hidden.jpg").write_bytes(b"x")
    (folders / "train/a/@eaDir").mkdir()
    (folders / "train/a/@eaDir/0.jpg").write_bytes(b"thumbnail")
    (folders / "README.md").write_text("notes")
    _age(folders, LONG_AGO - 77)
    assert _of(folders) == before
    moved = folders.rename(tmp_path / "elsewhere")
    assert _of(moved) == before


def test_a_pretraining_reads_no_val_images(folders: Path) -> None:
    before = fingerprint(image_parts(folders, ("train",)))
    shutil.rmtree(folders / "val" / "a")
    assert fingerprint(image_parts(folders, ("train",))) == before


def test_what_has_not_changed_is_not_read_again(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = _of(folders), []
    whole = content._read_files
    monkeypatch.setattr(content, "_read_files", lambda part, files: read.append(part.name) or whole(part, files))
    assert _of(folders) == before
    assert read == []
    _replace(folders)
    assert _of(folders) != before
    assert read == ["train"]


def test_large_trees_are_compared_by_the_times_of_folders(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MANY", 7)  # images: train/ has 9, val/ 6
    before, listed = _of(folders), []
    look = content._of_folder
    monkeypatch.setattr(
        content, "_of_folder", lambda part, name, *rest: listed.append(f"{part.name}/{name}") or look(part, name, *rest)
    )
    assert _of(folders) == before
    assert sorted(listed) == ["val/", "val/a", "val/b"]
    listed.clear()
    _relabel(folders)
    assert _of(folders) != before
    assert {name for name in listed if name.startswith("train")} == {"train/a", "train/b"}


def test_a_change_within_the_clock_s_resolution_is_seen(folders: Path) -> None:
    """A file written just now may be written again with the same time and size, so its state is not relied on."""
    file = folders / "train/a/0.jpg"
    file.write_bytes(b"first!")
    first, state = _of(folders), file.stat()
    file.write_bytes(b"second"[:6])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _of(folders) != first


def test_annotations_count_by_all_bytes_and_archives_by_blocks(tmp_path: Path) -> None:
    made = {name: bytearray(200_000) for name in ("a.json", "a.tar")}
    for name, value in made.items():
        (tmp_path / name).write_bytes(value)
    parts = {name: [Part("files", tmp_path, (name,))] for name in made}
    before = {name: fingerprint(one) for name, one in parts.items()}
    for place, noticed in ((5_000, {"a.json"}), (100, {"a.json", "a.tar"})):
        for name, value in made.items():
            (tmp_path / name).write_bytes(value[:place] + b"x" + value[place + 1 :])
        assert {name for name, one in parts.items() if fingerprint(one) != before[name]} == noticed


def test_a_lost_or_damaged_cache_costs_time_only(folders: Path) -> None:
    before = _of(folders)
    cache = content.cache_directory() / "fingerprints"
    for damage in ("{", "[]", '{"folders": {"": [1]}}'):
        for file in cache.glob("*.json"):
            file.write_text(damage)
        assert _of(folders) == before
    shutil.rmtree(cache)
    cache.write_text("a file where the cache should be")
    assert _of(folders) == before


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"], {"files"}),
        (["train2019.json", "train_val2019/1.jpg"], {"images", "lists"}),
        (["in-train-000.tar", "in-val-000.tar", "classnames.txt"], {"archives", "train", "val", "labels"}),
        (["train/000.tar", "val/000.tar"], {"train", "train archives", "val", "val archives"}),
        (["cat/1.jpg", "dog/1.jpg"], {"images", "archives"}),
        (["images/train/cat/1.jpg", "coco/annotations/instances_val2017.json"], {"train", "val"}),
    ],
)
def test_every_layout_has_its_parts(files: list[str], names: set[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert {part.name for part in image_parts(tmp_path, ("train", "val"))} == names
    read = {part.folder / name for part in image_parts(tmp_path, ("train", "val")) for name in part.files or ()}
    named = {tmp_path / name for name in files if not name.endswith(".jpg") and not name.startswith("coco/")}
    assert named <= read


def test_shards_of_a_pattern(tmp_path: Path) -> None:
    for name in ("in-train-0.tar", "in-train-1.tar", "in-val-0.tar"):
        (tmp_path / name).write_bytes(name.encode())
    pattern = Path(f"{tmp_path}/in-train-{{0..1}}.tar::{tmp_path}/in-val-0.tar")
    both, train = (fingerprint(image_parts(pattern, splits)) for splits in (("train", "val"), ("train",)))
    (tmp_path / "in-val-0.tar").write_bytes(b"others")
    assert fingerprint(image_parts(pattern, ("train",))) == train
    assert fingerprint(image_parts(pattern, ("train", "val"))) != both
