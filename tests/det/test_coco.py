"""Reading COCO data sets: what is kept, in which order, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as coco_masks
import pytest
from PIL import Image

from mimbench.det.data.coco import arranged, read_split
from mimbench.engine.data.datasets import CocoFiles, coco_files


def test_images_and_objects(make_coco) -> None:
    split = read_split(make_coco(3), "train")
    assert len(split) == 3
    assert split.image_ids.tolist() == [1, 2, 3]
    assert split.category_ids == (4, 9)
    assert split.categories == ("bar", "disc")
    assert split.size(0) == (48, 64)
    assert split.read_image(1).shape == (3, 48, 64)
    labels, (disc, bar) = split.objects(0)
    assert labels.tolist() == [1, 0]
    assert isinstance(disc, np.ndarray)
    assert disc.shape == (48, 64)
    assert [polygon.shape for polygon in bar] == [(8,)]


def test_coordinates_are_those_of_the_file(make_coco) -> None:
    root = make_coco(2)
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    split = read_split(root, "val")
    for index, image_id in enumerate(split.image_ids):
        disc, bar = (a["segmentation"] for a in content["annotations"] if a["image_id"] == image_id)
        _, shapes = split.objects(index)
        assert shapes[1][0].tolist() == bar[0]
        assert (shapes[0] == coco_masks.decode(disc)).all()


def test_all_categories_can_be_taken_as_one(make_coco) -> None:
    root = make_coco(3)
    split, one = read_split(root, "val"), read_split(root, "val", single_class=True)
    assert (one.category_ids, one.categories) == ((1,), ("object",))
    assert set(one.labels.tolist()) == {0}
    assert len(one.labels) == len(split.labels) > 0
    assert len(split.categories) > 1


def test_crowd_regions_are_no_objects_and_images_of_nothing_else_are_not_trained_on(make_coco, edit) -> None:
    root = make_coco(3)
    file = coco_files(root, "train").annotations

    def crowd(content) -> None:
        for annotation in content["annotations"]:
            if annotation["image_id"] == 2 or annotation["category_id"] == 4:
                annotation["iscrowd"] = 1
        content["images"].append({**content["images"][0], "id": 17})

    edit(file, crowd)
    split = read_split(root, "train")
    assert split.with_objects().tolist() == [0, 2]
    assert [len(split.objects(index)[0]) for index in range(4)] == [1, 0, 1, 0]


@pytest.mark.parametrize("form", ["text", "bytes", "list"])
def test_every_form_of_run_length_encoding(form: str) -> None:
    bitmap = np.zeros((5, 7), dtype=np.uint8)
    bitmap[1:4, 2:6] = 1
    counts = {
        "text": coco_masks.encode(np.asfortranarray(bitmap))["counts"].decode(),
        "bytes": coco_masks.encode(np.asfortranarray(bitmap))["counts"],
        "list": [11, 3, 2, 3, 2, 3, 2, 3, 6],
    }[form]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 5, "width": 7}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [2, 1, 4, 3], "segmentation": {"size": [5, 7], "counts": counts}}
        ],
    }
    _, [read] = arranged(content, CocoFiles(None, None)).objects(0)
    assert (read == bitmap).all()


def test_a_file_of_annotations_that_is_missing_or_broken(make_coco, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json does not exist"):
        read_split(tmp_path, "train")
    root = make_coco(1)
    coco_files(root, "train").annotations.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_split(root, "train")


def test_what_is_wrong_with_annotations_stops_a_run(make_coco, edit) -> None:
    root = make_coco(1)
    edit(coco_files(root, "train").annotations, lambda content: content["annotations"][0].update(category_id=5))
    with pytest.raises(ValueError, match="category_id 5"):
        read_split(root, "train")


def test_images_that_cannot_be_used_are_named(make_coco) -> None:
    root = make_coco(2)
    split = read_split(root, "train")
    Image.new("RGB", (60, 48)).save(root / "train2017" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: is 60 x 48, but .* says 64 x 48"):
        split.read_image(0)
    file = root / "train2017" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"2\.png"):
        split.read_image(1)


def test_an_image_is_turned_upright(make_coco) -> None:
    root = make_coco(1)
    split = read_split(root, "train")
    lying = Image.new("RGB", (48, 64), (255, 0, 0))
    exif = lying.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    lying.save(root / "train2017" / "1.png", exif=exif)
    assert split.read_image(0).shape == (3, 48, 64)
