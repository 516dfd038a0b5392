"""An annotation file read into columns gives what reading it entry by entry gives: arrays, warnings and errors."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mimbench.det.data import coco, columns
from mimbench.det.data.coco import CocoSplit, read_split
from mimbench.det.data.columns import read_columns
from mimbench.engine.data.datasets import UnfitError
from tests.det.lvis_data import write_lvis
from tests.det.test_check import FAULTS, GOOD, ODD, _content, _write
from tests.det.test_contradictions import CASES

Edit = Callable[[Path, Callable[[dict[str, Any]], None]], None]
ARRAYS = [field.name for field in fields(CocoSplit)]


class Outcomes:
    """What `read_split` gives, by columns and entry by entry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.monkeypatch, self.caplog = monkeypatch, caplog

    def of(self, root: Path, **options: Any) -> tuple[Any, Any]:
        """Both outcomes: bytes of all arrays and the warnings, or the error."""
        by_columns = self._one(root, **options)
        with self.monkeypatch.context() as patch:
            patch.setattr(coco, "read_columns", lambda *_, **__: None)
            return by_columns, self._one(root, **options)

    def _one(self, root: Path, **options: Any) -> Any:
        self.caplog.clear()
        try:
            split = read_split(root, "train", **options)
        except (UnfitError, FileNotFoundError) as error:
            return str(error)
        values = {name: getattr(split, name) for name in ARRAYS if name != "paths"}
        found = {name: _compared(value) for name, value in values.items()}
        return found, [split.paths.text(place) for place in range(len(split))], self.caplog.messages[:]


def _compared(value: Any) -> Any:
    """A value as it can be compared: of an array its type, shape and bytes (of one of Python's integers, these)."""
    if not isinstance(value, np.ndarray):
        return value
    return value.dtype.str, value.shape, value.tolist() if value.dtype == object else value.tobytes()


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Outcomes:
    """Reads a data set in both ways."""
    caplog.set_level(logging.WARNING)
    return Outcomes(monkeypatch, caplog)


def _file(root: Path) -> Path:
    [file] = (root / "annotations").glob("*train*.json")
    return file


def _varied(content: dict[str, Any]) -> None:
    """Whole numbers, several polygons, crowds, all forms of run lengths, odd boxes, missing and extra keys."""
    images, entries = content["images"], content["annotations"]
    images.append({**images[0], "id": 2**40, "file_name": images[0]["file_name"], "license": 3})
    entries[1]["segmentation"] = [[1, 2, 30, 2.5, 30, 20], [40.25, 3, 50, 3, 50, 21, 40, 21]]
    entries[2] |= {"segmentation": {"counts": [1000, 48 * 64 - 1000], "size": [48, 64]}, "iscrowd": 1}
    entries[3] |= {"bbox": [-30, 2.0, 40.0, 10], "ignore": 1}
    entries[4]["bbox"] = [3.5, 2, 0, 10]
    entries[5]["bbox"] = [3.5, 2, 0.0, 1e-3]
    del entries[6]["area"], entries[6]["iscrowd"]
    entries[7] |= {"area": 0, "attributes": {"occluded": True}}
    entries += [{**entries[1], "id": 900, "image_id": images[1]["id"]}, {**entries[0], "id": 0, "iscrowd": 1.0}]
    random.Random(0).shuffle(entries)


@pytest.mark.parametrize("group", [3, columns.GROUP])
@pytest.mark.parametrize("options", [{}, {"masks": False}, {"single_class": True}], ids=str)
def test_arrays_and_warnings_are_the_same(
    make_coco: Callable[..., Path],
    edit: Edit,
    outcomes: Outcomes,
    options: dict[str, Any],
    group: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "GROUP", group)
    monkeypatch.setattr(columns, "BLOCK", group - 1)
    root = make_coco(6)
    edit(_file(root), _varied)
    assert read_columns(_file(root), masks=True) is not None, "this form is usual"
    by_columns, by_entries = outcomes.of(root, **options)
    assert by_columns == by_entries
    assert len(by_columns[2]) > 3, "warnings"


def test_lvis_and_a_file_without_annotations_are_the_same(
    make_coco: Callable[..., Path], tmp_path: Path, edit: Edit, outcomes: Outcomes
) -> None:
    lvis = write_lvis(tmp_path / "lvis")
    [file] = (lvis / "annotations").glob("*train*.json")
    assert read_columns(file, masks=True, lvis=True) is not None
    by_columns, by_entries = outcomes.of(lvis, benchmark="lvis")
    assert by_columns == by_entries
    edit(file, lambda content: content["images"][3].pop("neg_category_ids"))
    by_columns, by_entries = outcomes.of(lvis, benchmark="lvis")
    assert by_columns == by_entries
    assert "has no list of neg_category_ids" in by_columns
    root = make_coco(2)
    edit(_file(root), lambda content: content["annotations"].clear())
    assert read_columns(_file(root), masks=True) is not None
    by_columns, by_entries = outcomes.of(root)
    assert by_columns == by_entries


def test_every_known_fault_is_told_in_the_same_words(tmp_path: Path, outcomes: Outcomes) -> None:
    for place, name in enumerate(FAULTS):
        content = _content()
        FAULTS[name][0](content)
        root = tmp_path / str(place)
        _write(root, content)
        by_columns, by_entries = outcomes.of(root)
        assert by_columns == by_entries, name
        assert isinstance(by_columns, str) or by_columns[2], name


def test_every_known_contradiction_is_told_in_the_same_words(
    make_coco: Callable[..., Path], outcomes: Outcomes
) -> None:
    root = make_coco(4)
    content = json.loads(_file(root).read_text())
    for name, (change, severity, _) in CASES.items():
        changed = json.loads(json.dumps(content))
        change(changed)
        _file(root).write_text(json.dumps(changed))
        for masks in (True, False):
            by_columns, by_entries = outcomes.of(root, masks=masks)
            assert by_columns == by_entries, name
        if severity != "error":
            assert read_columns(_file(root), masks=True) is not None, name


def test_odd_values_at_random_are_taken_or_refused_alike(tmp_path: Path, outcomes: Outcomes) -> None:
    """Whatever stands in the file, the outcome is the same; both are told in the same words."""
    draw, taken = random.Random(1), 0
    _write(tmp_path, _content())
    for number in range(120):
        content = _content()
        for _ in range(draw.randrange(1, 3)):
            name = draw.choice(list(GOOD))
            entry, key = draw.choice(content[name]), draw.choice([*GOOD[name], "ignore"])
            if draw.random() < 0.15:
                entry.pop(key, None)
            else:
                entry[key] = draw.choice([*ODD, entry.get(key), [[1.5, 2, 9, 3, 9, 10]], 1.0, 2, [1, 1, 8.0, 1e308]])
        _file(tmp_path).write_text(json.dumps(content))
        masks = draw.random() < 0.7
        by_columns, by_entries = outcomes.of(tmp_path, masks=masks)
        assert by_columns == by_entries, f"{number}: {content}"
        taken += read_columns(_file(tmp_path), masks) is not None
    assert 10 < taken < 100


def test_half_a_surrogate_in_run_lengths_is_told_in_the_same_words(tmp_path: Path, outcomes: Outcomes) -> None:
    content = _content()
    image = content["images"][0]
    region = {"size": [image["height"], image["width"]], "counts": "\ud800"}
    content["annotations"][0] |= {"image_id": image["id"], "segmentation": region}
    _write(tmp_path, content)
    by_columns, by_entries = outcomes.of(tmp_path)
    assert by_columns == by_entries
    assert "compressed run lengths that do not fill the image" in by_columns


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, '{"images": 1}', '{"images": [], "annotations": [], "categories": []} x', "\ufeff{}"],
    ids=range(6),
)
def test_what_is_no_annotation_file_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "instances_train2017.json"
    assert read_columns(file, masks=True) is None
    file.write_text(text, encoding="utf-8")
    assert read_columns(file, masks=True) is None


def test_numbers_are_those_of_python() -> None:
    """msgspec rounds a decimal to the nearest float, as Python does, and refuses what is infinite."""
    draw, decoder = random.Random(0), msgspec.json.Decoder(float)
    for _ in range(20_000):
        digits = "".join(draw.choice("0123456789") for _ in range(draw.randrange(1, 25)))
        text = f"{draw.choice(['', '-'])}{draw.randrange(10 ** draw.randrange(1, 20))}.{digits}"
        text += draw.choice(["", f"e{draw.randrange(-320, 280)}"])
        assert decoder.decode(text) == float(text), text
    with pytest.raises(msgspec.ValidationError):
        decoder.decode("1e999")
