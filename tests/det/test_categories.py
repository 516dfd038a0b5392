"""Categories of both splits must mean the same: ids and names."""

from __future__ import annotations

import pytest

from mimbench.det.data.categories import Categories, category_findings
from mimbench.det.data.check import check_coco
from mimbench.det.data.coco import read_split
from mimbench.det.data.splits import same_categories
from mimbench.engine.data.datasets import coco_files, require

TRAIN = {1: "cat", 2: "dog", 5: "Traffic light"}


@pytest.mark.parametrize(
    ("val", "expected"),
    [
        ({1: "dog", 2: "cat", 5: "Traffic light"}, "category 1 is 'dog', but 'cat' in train.json (and 1 more); give"),
        ({1: "cat", 2: "dog", 5: "bus"}, "category 5 is 'bus', but 'Traffic light' in train.json; give each"),
        ({0: "cat", 1: "dog", 4: "Traffic light"}, "ids [2, 5]); the same names have other ids"),
        ({1: "cat", 2: "dog"}, "does not have all categories of train.json (missing ids [5]); list the same"),
        (
            {1: "cat", 2: "dog", 5: "Traffic light", 6: "x"},
            "train.json: does not have all categories of val.json",
        ),
    ],
)
def test_differences_are_errors(val: dict[int, str], expected: str) -> None:
    with pytest.raises(ValueError, match=r"category|categories") as raised:
        require(category_findings(Categories("train.json", TRAIN), Categories("val.json", val)))
    assert expected in str(raised.value)


def test_spelling_is_no_difference() -> None:
    val = {1: "Cat ", 2: "dog", 5: "traffic_light"}
    (finding,) = category_findings(Categories("train.json", TRAIN), Categories("val.json", val))
    assert (finding.severity, finding.what) == ("warning", "spells category 1 'Cat ', train.json 'cat'")
    assert not list(category_findings(Categories("a", TRAIN), Categories("b", dict(reversed(TRAIN.items())))))


def test_one_id_with_two_names_stops_the_check_and_a_run(make_coco, edit) -> None:
    root = make_coco(2)
    file = coco_files(root, "val").annotations
    edit(file, lambda content: [one.update(name={9: "bar", 4: "disc"}[one["id"]]) for one in content["categories"]])
    report = check_coco(root)
    assert report.failed
    expected = f"category 4 is 'disc', but 'bar' in {coco_files(root, 'train').annotations} (and 1 more)"
    assert [finding.what for finding in report.findings if finding.severity == "error"] == [expected]
    splits = [read_split(root, "train"), read_split(root, "val")]
    with pytest.raises(ValueError, match="category 4 is 'disc'"):
        require(same_categories(*splits))
    require(same_categories(*(read_split(root, split, single_class=True) for split in ("train", "val"))))
