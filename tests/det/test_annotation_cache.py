"""What is kept of a large annotation file equals what reading it gives, and nothing else is ever taken for it."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimbench.det.data import annotation_cache, coco
from mimbench.det.data.coco import CocoSplit, read_split
from mimbench.engine.data.datasets import UnfitError, cache_directory

Edit = Callable[[Path, Callable[[dict[str, Any]], None]], None]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The annotation files that are parsed; every file counts as large."""
    files: list[Path] = []
    plain = coco.read_columns

    def read(file: Path, *options: Any, **more: Any) -> Any:
        files.append(file)
        return plain(file, *options, **more)

    monkeypatch.setattr(coco, "read_columns", read)
    monkeypatch.setattr(annotation_cache, "LEAST", 0)
    return files


def _same(first: CocoSplit, second: CocoSplit) -> bool:
    for name in (field.name for field in fields(CocoSplit)):
        ours, theirs = getattr(first, name), getattr(second, name)
        if name == "paths":
            ours, theirs = ([str(paths[i]) for i in range(len(paths))] for paths in (ours, theirs))
        equal = np.array_equal(ours, theirs) and ours.dtype == theirs.dtype if isinstance(ours, np.ndarray) else None
        assert equal if equal is not None else ours == theirs, name
    return True


def _kept(root: Path) -> list[Path]:
    return sorted((root / "annotations").glob(f".*{annotation_cache.ENDING}"))


def test_read_again_nothing_is_parsed_and_all_is_the_same(
    make_coco: Callable[..., Path], parsed: list[Path], edit: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_coco(3)
    [file] = (root / "annotations").glob("*train*.json")

    def odd(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [-30.0, 2.0, 40.0, 10.0]
        content["categories"][0]["name"] = "Grün"

    edit(file, odd)
    with caplog.at_level(logging.WARNING):
        first = read_split(root, "train")
        said = caplog.messages[:]
        again = read_split(root, "train")
    assert said
    assert caplog.messages == said * 2, "warnings about the file are repeated"
    assert _same(first, again)
    assert parsed == [file]
    for options in ({"masks": False}, {"single_class": True}):
        assert _same(read_split(root, "train", **options), read_split(root, "train", **options))  # type: ignore[arg-type]
    assert parsed == [file] * 3, "each way of reading is kept by itself"


@pytest.mark.parametrize("damage", ["another content", "a flipped bit", "cut short", "a pickle", "of another schema"])
def test_what_does_not_fit_is_made_anew(
    make_coco: Callable[..., Path], parsed: list[Path], edit: Edit, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco(3)
    first = read_split(root, "train")
    [file], [place] = (root / "annotations").glob("*train*.json"), _kept(root)
    content = bytearray(place.read_bytes())
    if damage == "another content":
        edit(file, lambda content: content["annotations"].pop())
        first = coco.arranged(coco.read_annotations(file), first.files)
        parsed.clear()
        parsed.append(file)
    elif damage == "a flipped bit":
        content[-20] ^= 1
    elif damage == "of another schema":
        monkeypatch.setattr(annotation_cache, "SCHEMA", annotation_cache.SCHEMA + 1)
    place.write_bytes(pickle.dumps([1]) if damage == "a pickle" else content[: -9 if damage == "cut short" else None])
    assert _same(read_split(root, "train"), first)
    assert len(parsed) == 2
    assert _same(read_split(root, "train"), first)
    assert len(parsed) == 2, "and kept"


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    make_coco: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = coco.read_columns

    def read(file: Path, *options: Any, **more: Any) -> Any:
        columns, before = plain(file, *options, **more), file.stat()
        file.write_bytes(file.read_bytes())  # of the same size, and made to look as old
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return columns

    monkeypatch.setattr(annotation_cache, "LEAST", 0)
    monkeypatch.setattr(coco, "read_columns", read)
    root = make_coco(3)
    read_split(root, "train")
    assert not _kept(root)
    monkeypatch.setattr(coco, "read_columns", plain)
    read_split(root, "train")
    assert len(_kept(root)) == 1


def test_a_missing_image_is_still_named(make_coco: Callable[..., Path], parsed: list[Path]) -> None:
    root = make_coco(3)
    gone = read_split(root, "train").paths[1]
    gone.unlink()
    with pytest.raises(UnfitError, match=gone.name):
        read_split(root, "train")
    assert len(parsed) == 2


def test_beside_a_file_that_nobody_may_write_to_the_cache_keeps_it(
    make_coco: Callable[..., Path], parsed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco(3)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert _same(read_split(root, "train"), read_split(root, "train"))
    assert len(parsed) == 1
    assert _kept(root) == []
    assert len(list((cache_directory() / "annotations").iterdir())) == 1


def test_every_user_of_the_data_set_can_read_what_is_kept(make_coco: Callable[..., Path], parsed: list[Path]) -> None:
    root = make_coco(3)
    [file] = (root / "annotations").glob("*train*.json")
    read_split(root, "train")
    [place] = _kept(root)
    assert place.stat().st_mode == file.stat().st_mode, "as any other new file"
    assert parsed == [file]


def test_only_the_temporary_file_that_is_swept_is_written(
    make_coco: Callable[..., Path], parsed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed while it writes leaves a file, which the next one removes once it is old."""
    root = make_coco(3)
    before = set((root / "annotations").iterdir())
    monkeypatch.setattr(os, "fsync", _killed)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody cleans up after a kill
    with pytest.raises(KeyboardInterrupt):
        read_split(root, "train")
    monkeypatch.undo()
    monkeypatch.setattr(annotation_cache, "LEAST", 0)
    [left] = set((root / "annotations").iterdir()) - before
    os.utime(left, (1e9, 1e9))
    read_split(root, "train")
    assert set((root / "annotations").iterdir()) - before == set(_kept(root))
    assert not left.exists()


def _killed(_: int) -> None:
    raise KeyboardInterrupt


def test_small_files_are_read_themselves(make_coco: Callable[..., Path]) -> None:
    root = make_coco(3)
    read_split(root, "train")
    assert _kept(root) == []
