"""Readers of label maps: every layout, what ids mean, and what is wrong said in one line."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.seg.data.layouts import ADE_ZIP
from mimbench.seg.data.split import open_labelled, open_split
from mimbench.seg.evaluation.bootstrap import predictions


def test_a_folder_of_pairs(make_pairs) -> None:
    split = open_split(make_pairs(3), "train")
    assert (len(split), split.classes, split.layout.name) == (3, ("ground", "disc", "bar"), "images and labels")
    image, labels = split.pair(1)
    assert image.shape == (48, 64, 3)
    assert set(np.unique(labels)) == {0, 1, 2, 255}
    assert image[labels == 1].mean(0)[0] < image[labels == 1].mean(0)[2]  # blue first


def test_ade20k_from_folders_and_from_its_zip(make_ade, tmp_path) -> None:
    root = make_ade(3)
    folder = open_split(root, "val")
    assert len(folder.classes) == 150
    assert folder.classes[0] == "wall"
    raw, labels = folder.raw_labels(0), folder.labels(0)
    assert ((raw == 0) == (labels == 255)).all()
    assert (labels[raw > 0] == raw[raw > 0] - 1).all()
    place = tmp_path / "zipped"
    place.mkdir()
    with zipfile.ZipFile(place / ADE_ZIP, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, Path("ADEChallengeData2016") / path.relative_to(root))
    zipped = pickle.loads(pickle.dumps(open_split(place, "val")))  # as a loading process gets it
    assert zipped.pairs == folder.pairs
    for index in range(3):
        for one, other in zip(zipped.pair(index), folder.pair(index), strict=True):
            assert np.array_equal(one, other)
    inside = tmp_path / "unpacked"
    shutil.copytree(root, inside / "ADEChallengeData2016")
    assert open_split(inside, "train").pairs == open_split(root, "train").pairs


def test_voc_by_its_lists(make_pairs, tmp_path) -> None:
    pairs, root = make_pairs(3), tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    shutil.copytree(pairs / "images" / "train", root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    for file in (pairs / "labels" / "train").iterdir():
        indexed = Image.open(file).copy()
        indexed.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
        indexed.save(root / "SegmentationClass" / file.name)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("000\n002\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("001\n")
    train, val = (open_split(tmp_path / "voc", split) for split in ("train", "val"))
    assert [Path(image).stem for image, _ in train.pairs] == ["000", "002"]
    assert len(val.classes) == 21
    assert set(np.unique(val.labels(0))) == {0, 1, 2, 255}
    _sbd(tmp_path / "voc" / "VOCdevkit" / "VOCaug" / "dataset", root)
    trainaug = open_split(tmp_path / "voc", "train")  # VOC2012's own and SBD's, without VOC2012's validation images
    assert [Path(image).stem for image, _ in trainaug.pairs] == ["000", "002", "2008_000003"]
    assert [Path(labels).suffix for _, labels in trainaug.pairs] == [".png", ".png", ".mat"]
    assert np.array_equal(trainaug.labels(2), train.labels(1) % 255)
    Path(trainaug.store.path / trainaug.pairs[2][1]).write_bytes(b"MATLAB 5.0, they said")
    with pytest.raises(ValueError, match=r"2008_000003\.mat: is not a label map of SBD"):
        trainaug.labels(2)
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("000\n001\n002\n")
    shutil.copytree(root / "SegmentationClass", root / "SegmentationClassAug")
    again = open_split(tmp_path / "voc", "train")
    assert len(again) == 3
    assert "SegmentationClassAug" in again.pairs[0][1]


def _sbd(sbd: Path, voc: Path) -> None:
    """Write SBD with labels of 000 and 001, which VOC2012 has, and of another image, as MATLAB saves its structures."""
    (sbd / "cls").mkdir(parents=True)
    shutil.copy(voc / "JPEGImages" / "002.png", voc / "JPEGImages" / "2008_000003.png")
    labels = np.asarray(Image.open(voc / "SegmentationClass" / "002.png")) % 255
    for stem in ("000", "001", "2008_000003"):
        content = {"GTcls": {"Boundaries": np.zeros(3), "Segmentation": labels, "CategoriesPresent": np.array([1, 2])}}
        savemat(sbd / "cls" / f"{stem}.mat", content)
    (sbd / "train.txt").write_text("000\n2008_000003\n")
    (sbd / "val.txt").write_text("001\n")


def test_cityscapes_and_its_label_ids(tmp_path) -> None:
    for split in ("train", "val"):
        for folder, suffix in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelTrainIds.png")):
            place = tmp_path / folder / split / "aachen"
            place.mkdir(parents=True)
            pixels = np.full((8, 16, 3), 9, np.uint8) if folder == "leftImg8bit" else np.full((8, 16), 18, np.uint8)
            Image.fromarray(pixels).save(place / f"aachen_000000_000019{suffix}")
    split = open_split(tmp_path, "val")
    assert len(split.classes) == 19
    assert (split.labels(0) == 18).all()
    written = tmp_path / "predictions"
    for place in (
        "aachen_000000_000019_gtFine_labelTrainIds.png",
        "aachen/aachen_000000_000019_gtFine_labelTrainIds.png",
    ):
        (written / place).parent.mkdir(parents=True, exist_ok=True)
        (written / place).touch()  # earlier runs have the first alone
        assert predictions(split, written) == [written / place]
    file = tmp_path / split.pairs[0][1]
    Image.fromarray(np.full((8, 16), 33, np.uint8)).save(file)
    with pytest.raises(ValueError, match=r"labelTrainIds\.png: .*id 33.*0 to 18; these are labelIds"):
        split.labels(0)


def test_handwritten_has_label_maps(tmp_path) -> None:
    sizes = Sizes(train=10, val=10, side=24, coco_train=24, coco_val=8, coco_side=96)
    root = make_handwritten(tmp_path / "handwritten", sizes=sizes)
    split = open_split(root, "train")
    assert split.classes == ("background", *map(str, range(10)))
    seen = set()
    for index in range(len(split)):
        image, labels = split.pair(index)
        seen |= set(np.unique(labels).tolist())
        shown = labels[(labels > 0) & (labels < 255)]
        if len(shown):
            assert image[(labels > 0) & (labels < 255)].mean() > 1.5 * image[labels == 0].mean()  # ink is light
    assert seen >= {0, 255}
    assert len(seen) > 6
    assert (open_split(root, "train").labels(7) == 0).all()  # every 32nd holds nothing


def _edit(file: Path, change) -> None:
    Image.fromarray(change(np.array(Image.open(file)))).save(file)


def test_what_is_wrong_is_said(make_pairs, make_ade, tmp_path) -> None:
    root = make_pairs(2)
    split = open_split(root, "train")
    file = root / "labels" / "train" / "000.png"
    _edit(file, lambda ids: np.where(ids == 2, 3, ids).astype(np.uint8))
    with pytest.raises(ValueError, match=r"000\.png: .*id 3; the 3 classes are 0 to 2.*subtract 1"):
        split.labels(0)
    _edit(file, lambda ids: np.where(ids == 3, 77, ids).astype(np.uint8))
    with pytest.raises(ValueError, match=r"id 77.*name every class in classes\.txt"):
        split.labels(0)
    with pytest.raises(ValueError, match=r"id 77"):
        split.raw_pair(0, (255,))
    assert 77 in split.raw_pair(0, (77, 255))[1]
    _edit(file, lambda ids: np.zeros((64, 48), np.uint8))
    for read in (split.pair, lambda index: split.raw_pair(index, (255,))):
        with pytest.raises(ValueError, match=r"48 x 64 pixels.* 64 x 48"):
            read(0)
    picture = root / "images" / "train" / "000.png"
    image = Image.open(picture).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "images" / "train" / "000.jpg", exif=exif)
    picture.unlink()
    _edit(file, lambda ids: np.zeros((64, 48), np.uint8))
    with pytest.raises(ValueError, match="EXIF"):
        open_split(root, "train").pair(0)
    for number in (0, 1):
        _edit(root / "labels" / "val" / f"00{number}.png", lambda ids: np.full_like(ids, 255))
    with pytest.raises(ValueError, match=r"labels/val: has no labelled pixel.*ids other than 255"):
        open_labelled(root, "val")
    assert len(open_labelled(root, "train").classes) == 3
    file.unlink()
    with pytest.raises(ValueError, match=r"labels/train/000\.png: does not exist"):
        open_split(root, "train").labels(0)
    (root / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no classes"):
        open_split(root, "train")
    (root / "classes.txt").write_text("only\n")
    with pytest.raises(ValueError, match="names only one class"):
        open_split(root, "train")
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt: does not exist"):
        open_split(root, "train")
    ade = make_ade(1)
    _edit(ade / "annotations/training/ADE_train_00000000.png", lambda ids: np.full_like(ids, 151))
    with pytest.raises(ValueError, match="150 classes are 1 to 150; write 0 or 255 for"):
        open_split(ade, "train").labels(0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"unknown layout.*classes\.txt"):
        open_split(tmp_path / "empty", "train")
    (tmp_path / "empty" / "index_ade20k.pkl").touch()
    with pytest.raises(ValueError, match=r"full ADE20K.*ADEChallengeData2016"):
        open_split(tmp_path / "empty", "train")


def test_pascal_context_and_isaid(make_pairs, tmp_path) -> None:
    pairs, root = make_pairs(2), tmp_path / "context" / "VOC2010"
    shutil.copytree(pairs / "images" / "train", root / "JPEGImages")
    shutil.copytree(pairs / "labels" / "train", root / "SegmentationClassContext")
    lists = root / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n")
    (lists / "val.txt").write_text("001\n")
    context = open_split(tmp_path / "context", "val")
    assert (len(context), len(context.classes), context.classes[0]) == (1, 59, "aeroplane")
    raw, labels = context.raw_labels(0), context.labels(0)
    assert (labels[raw == 0] == 255).all()
    assert (labels[raw == 1] == 0).all()
    sixty = open_split(tmp_path / "context", "val", background=True)
    assert (len(sixty.classes), sixty.classes[:2]) == (60, ("background", "aeroplane"))
    assert np.array_equal(sixty.labels(0), raw)
    with pytest.raises(ValueError, match="is images and labels; use background=false"):
        open_split(pairs, "val", background=True)
    for folder, source, suffix in (("img_dir", "images", ""), ("ann_dir", "labels", "_instance_color_RGB")):
        for split in ("train", "val"):
            (tmp_path / "isaid" / folder / split).mkdir(parents=True)
            for file in (pairs / source / split).iterdir():
                shutil.copy(file, tmp_path / "isaid" / folder / split / f"{file.stem}{suffix}.png")
    isaid = open_split(tmp_path / "isaid", "train")
    assert (len(isaid), len(isaid.classes)) == (2, 16)
    assert np.array_equal(isaid.labels(1), open_split(pairs, "train").labels(1))
