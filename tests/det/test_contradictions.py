"""What entries of an annotation file say against each other: each is decided and said with a count."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mimbench.det.data.annotations import annotation_findings
from mimbench.det.data.check import check_coco
from mimbench.det.data.coco import read_split
from mimbench.det.data.contradictions import Boxes, contradicting_boxes
from mimbench.engine.data.datasets import coco_files, require

Content = dict[str, Any]
WIDTH, HEIGHT = 64, 48


def _boxes(change: Callable[[list[float]], list[float]], masks: bool = True) -> Callable[[Content], None]:
    def apply(content: Content) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = change(annotation["bbox"])
            if not masks:
                del annotation["segmentation"]

    return apply


def _fractions(box: list[float]) -> list[float]:
    return [box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT]


def _each(places: slice, **values: Any) -> Callable[[Content], None]:
    return lambda content: [one.update(values) for one in content["annotations"][places]] and None


def _polygons(change: Callable[[float, int], float], places: slice = slice(None)) -> Callable[[Content], None]:
    """`change` of each number of the bars' polygons, and its place: 0 for x, 1 for y."""

    def apply(content: Content) -> None:
        bars = [one for one in content["annotations"] if one["category_id"] == 4][places]
        for bar in bars:
            bar["segmentation"] = [[change(value, place % 2) for place, value in enumerate(bar["segmentation"][0])]]

    return apply


def _twice(content: Content) -> None:
    content["annotations"] += [{**one, "id": 100 + number} for number, one in enumerate(content["annotations"][:2])] + [
        {**content["annotations"][0], "id": 300, "iscrowd": 1}
    ]


def _bars_in_fractions(content: Content) -> None:
    _polygons(lambda value, place: value / (WIDTH, HEIGHT)[place])(content)
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 4]


CASES: dict[str, tuple[Callable[[Content], None], str, str]] = {  # 4 images: 4 discs as run lengths, 4 bars as polygons
    "fractions": (_boxes(_fractions), "error", "8 of 8 boxes are fractions of the image, not pixels"),
    "fractions, boxes alone": (_boxes(_fractions, masks=False), "error", "8 of 8 boxes are fractions of the image"),
    "polygons as fractions": (_bars_in_fractions, "error", "4 of 4 polygons are fractions of the image"),
    "corners": (
        _boxes(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]), "error", "8 of 8 boxes are [x0, y0, x1, y1]"
    ),
    "corners, boxes alone": (
        _boxes(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], masks=False), "error", "8 of 8 boxes are [x0, y0,"
    ),
    "mask outside": (
        _polygons(lambda v, place: v + 100, slice(2)), "error", "2 of 8 masks lie outside their images"
    ),
    "mask partly outside": (
        _polygons(lambda v, place: v + 13 * (1 - place), slice(3)), "warning", "3 of 8 masks lie partly outside",
    ),
    "box elsewhere": (_each(slice(5), bbox=[0.0, 0.0, 5.0, 5.0]), "warning", "5 of 8 boxes contradict their masks"),
    "area of the image": (_each(slice(3), area=WIDTH * HEIGHT), "warning", "3 of 8 areas equal the whole image"),
    "area too large": (_each(slice(2), area=2000), "warning", "2 of 8 areas are larger than the box"),
    "area of 0": (_each(slice(6), area=0), "warning", "6 of 8 areas are 0"),
    "ignore": (_each(slice(4), ignore=1), "warning", "4 of 8 annotations have ignore: 1"),
    "no area": (lambda c: [one.pop("area") for one in c["annotations"]] and None, "note", "8 of 8 annotations have no"),
    "twice": (_twice, "warning", "2 of 11 objects are duplicates"),
    "one name": (
        lambda content: [one.update(name="thing") for one in content["categories"]] and None,
        "warning", "2 categories are called 'thing'",
    ),
    "an image twice": (
        lambda content: content["images"].append({**content["images"][0], "id": 77}),
        "warning", "1 of 4 images are listed twice",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Any:
    """A sound data set, and the content of its training file."""
    from tests.det.conftest import write_coco

    root = write_coco(tmp_path_factory.mktemp("sound") / "shapes", 4)
    return root, json.loads(coco_files(root, "train").annotations.read_text())


def test_nothing_is_said_of_a_sound_file(plain) -> None:
    root, content = plain
    assert not list(annotation_findings(content, coco_files(root, "train")))


@pytest.mark.parametrize("case", CASES)
def test_each_is_counted(plain, case: str) -> None:
    root, content = plain
    change, severity, expected = CASES[case]
    content = json.loads(json.dumps(content))
    change(content)
    masks = all("segmentation" in one for one in content["annotations"])
    findings = list(annotation_findings(content, coco_files(root, "train"), masks))
    about = [(finding.severity, finding.what) for finding in findings if expected in finding.what]
    assert [kind for kind, _ in about] == [severity], findings
    assert "(annotation" not in about[0][1] or ": bbox [" in about[0][1]  # the first is named with its box
    errors = [finding for finding in findings if finding.severity == "error"]
    assert bool(errors) == (severity == "error")


def test_duplicates_are_found_wherever_they_stand() -> None:
    """Equal rows are found by equal sums, which a matrix product does not give at every place."""
    draw = np.random.default_rng(0)
    places = draw.permutation(np.repeat(np.arange(2501), 2))
    xywh = draw.uniform(1, 300, (2501, 4))[places]
    found = contradicting_boxes(
        Boxes(
            ids=np.arange(1, 5003), kinds=draw.integers(0, 10**7, 2501)[places], sizes=np.full((5002, 2), 640.0),
            xywh=xywh, spans=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            areas=xywh[:, 2:].prod(1), crowd=np.zeros(5002, bool), ignored=np.zeros(5002, bool),
        ),
        "file",
    )  # fmt: skip
    assert any("2,501 of 5,002 objects are duplicates" in finding.what for finding in found)


def test_few_boxes_that_stick_out_are_not_taken_for_corners(plain) -> None:
    """Sloppy boxes at the border of an image are a warning, as in COCO."""
    root, content = plain
    content = json.loads(json.dumps(content))
    content["annotations"] = [{**content["annotations"][0], "bbox": [10.0, 9.0, 58.0, 41.0]} for _ in range(2)]
    content["annotations"][1]["id"] = 99
    findings = list(annotation_findings(content, coco_files(root, "train"), masks=False))
    assert not any(finding.severity == "error" for finding in findings)
    assert "partly outside its image of 64 x 48 (and 1 more like it)" in findings[0].what


def test_a_run_says_it_too_and_stops_at_errors(make_coco, edit, caplog) -> None:
    root = make_coco(2)
    file = coco_files(root, "train").annotations
    edit(file, _each(slice(3), ignore=1))
    read_split(root, "train")
    assert [record.message for record in caplog.records if "3 of 4 annotations have ignore: 1" in record.message]
    edit(file, _boxes(_fractions))
    with pytest.raises(ValueError, match=r"4 of 4 boxes are fractions of the image"):
        read_split(root, "train")


def test_one_cause_is_one_line(make_coco, edit) -> None:
    root = make_coco(4)
    file = coco_files(root, "train").annotations
    edit(file, _each(slice(None), category_id=77))
    for picture in (root / "train2017").iterdir():
        picture.write_bytes(picture.read_bytes()[:50])
    errors = [finding for finding in check_coco(root).findings if finding.severity == "error"]
    assert len(errors) == 2
    assert (
        "annotation 1 has category_id 77, which is not one of the 2 categories (and 7 more like it)" in errors[0].what
    )
    assert "(and 3 more like it: 3.png, 2.png, 1.png)" in errors[1].what
    with pytest.raises(ValueError, match="and 7 more like it"):
        require(annotation_findings(json.loads(file.read_text()), coco_files(root, "train")))


def test_images_of_both_splits_and_copies(make_coco) -> None:
    root = make_coco(3)
    pictures = [root / "val2017" / f"{number}.png" for number in (1, 2, 3)]
    pictures[0].write_bytes((root / "train2017" / "2.png").read_bytes())
    pictures[1].write_bytes(pictures[2].read_bytes())
    report = check_coco(root)
    said = {finding.severity: finding.what for finding in report.findings}
    assert set(said) == {"warning"}
    assert any(
        "1 of 3 images are copies of another image (the first: 2.png of 3.png)" in one.what for one in report.findings
    )
    assert "1 of 2 validation images are training images (the first: 1.png is 2.png)" in report.findings[-1].what
    assert report.facts["val images in train"] == 1
    for number in (1, 2, 3):
        (root / "val2017" / f"{number}.png").write_bytes((root / "train2017" / f"{number}.png").read_bytes())
    last = check_coco(root).findings[-1]
    assert (last.severity, last.what.split(" (")[0]) == ("error", "all 3 validation images are training images")
