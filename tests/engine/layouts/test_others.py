"""CIFAR, WebDataset, iNaturalist, Places365 and subsets, against torchvision's readers or plain loops."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100, Places365

from mimbench.engine.data.datasets import UnfitError, locate
from mimbench.engine.data.images import ImageFolder
from mimbench.engine.data.layouts import pickles
from mimbench.engine.data.layouts.recognise import open_listing, splits_of
from tests.engine.layouts.made import WNIDS, jpeg, tar_of

RNG = np.random.default_rng(3)


# -------------------------------------------------------------------------------------------------------------- CIFAR


def _python_2(value: object) -> bytes:
    """`value` as Python 2 pickled it, which the published files are: byte strings everywhere, protocol 2."""
    if isinstance(value, dict):
        items = b"".join(_python_2(key) + _python_2(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python_2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")
    assert isinstance(value, np.ndarray)
    begun = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(_python_2(size) for size in value.shape) + b"t"
    content = b"T" + struct.pack("<i", value.nbytes) + value.tobytes()
    return begun + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


def _dumped(value: object) -> bytes:
    return b"\x80\x02" + _python_2(value) + b"."


def _cifar(root: Path, classes: int, dump: Callable[[object], bytes]) -> Path:
    """CIFAR-10 or -100 with 4 images in a file."""
    directory = root / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    directory.mkdir(parents=True)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    for name in files:
        data, labels = RNG.integers(0, 256, (4, 3072), dtype=np.uint8), RNG.integers(0, classes, 4).tolist()
        said = {"data": data, "filenames": [f"{i}.png" for i in range(4)]}
        said |= {"labels": labels} if classes == 10 else {"fine_labels": labels, "coarse_labels": [0] * 4}
        (directory / name).write_bytes(dump(said))
    names = [f"class {number}" for number in range(classes)]
    meta = {"label_names": names} if classes == 10 else {"fine_label_names": names}
    (directory / ("batches.meta" if classes == 10 else "meta")).write_bytes(dump(meta))
    return directory


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("dump", [_dumped, lambda value: pickle.dumps(value, 2), pickle.dumps])
def test_cifar_equals_torchvisions(
    tmp_path: Path, classes: int, dump: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = _cifar(tmp_path, classes, dump)
    original = CIFAR10 if classes == 10 else CIFAR100
    monkeypatch.setattr(original, "_check_integrity", lambda self: True)  # these are not the files of the known MD5
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for split in ("train", "val"):
        theirs = original(str(tmp_path), train=split == "train")
        for root in (tmp_path, inner):
            folder = ImageFolder(root, split)  # type: ignore[arg-type]
            assert folder.classes == theirs.classes
            assert folder.labels.tolist() == theirs.targets
            assert folder.pixels is not None
            assert np.array_equal(folder.pixels.permute(0, 2, 3, 1).numpy(), theirs.data)
            assert folder.pixels[0].permute(1, 2, 0).is_contiguous()
            read = ImageFolder(root, split, cache=False)  # type: ignore[arg-type]
            assert all(torch.equal(read[place][0], folder[place][0]) for place in range(len(folder)))
    assert splits_of(tmp_path) == ["train", "val"]
    assert ImageFolder(tmp_path, "val").paths.text(1).endswith("/00001.ppm")


def test_cifar_binary_and_packed(tmp_path: Path) -> None:
    python = _cifar(tmp_path / "python", 100, _dumped)
    binary = tmp_path / "binary" / "cifar-100-binary"
    binary.mkdir(parents=True)
    for name in ("train", "test"):
        said = pickles.load((python / name).read_bytes())
        rows = [bytes([0, label]) + row.tobytes() for label, row in zip(said["fine_labels"], said["data"], strict=True)]
        (binary / f"{name}.bin").write_bytes(b"".join(rows))
    (binary / "fine_label_names.txt").write_text("".join(f"class_{number}\n" for number in range(100)))
    packed = tmp_path / "packed"
    packed.mkdir()
    files = [(f"cifar-100-python/{file.name}", file.read_bytes()) for file in python.iterdir()]
    tar_of(files, packed / "cifar-100-python.tar.gz", "w:gz")
    first = open_listing(python, "train")
    for root in (binary.parent, binary, packed):
        found = open_listing(root, "train")
        assert torch.equal(found.labels, first.labels)
        assert found.pixels is not None and first.pixels is not None
        assert torch.equal(found.pixels, first.pixels)
    assert open_listing(binary, "val").classes[3] == "class_3"


def test_cifar_that_is_damaged_or_not_what_it_says(tmp_path: Path) -> None:
    inner = _cifar(tmp_path, 10, _dumped)
    good = (inner / "data_batch_2").read_bytes()
    for content, expected in (
        (good[:2000], "pickle data was truncated"),
        (b"\x80\x02]K\x01K\x02s.", "it is damaged"),
        (pickle.dumps(Path("x")), "it holds pathlib"),
        (_dumped({"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2]}), "4 images with 2 labels"),
        (_dumped({"labels": [1, 2]}), "'data'"),
        (_dumped([1]), "it holds a list, not a dictionary"),
        (
            pickle.dumps({"data": np.zeros((4, 3072)), "labels": [0] * 4}),
            "it holds an array of type 'f8', not of bytes",
        ),
    ):
        (inner / "data_batch_2").write_bytes(content)
        with pytest.raises(UnfitError, match=rf"data_batch_2: .*CIFAR-10 .*\({expected}"):
            open_listing(tmp_path, "train")
    assert splits_of(tmp_path) == ["train", "val"]  # damaged, and there
    (inner / "data_batch_2").unlink()
    with pytest.raises(UnfitError, match=r"data_batch_2: is missing; unpack cifar-10-python\.tar\.gz again"):
        open_listing(tmp_path, "train")
    (inner / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch does not exist"):
        open_listing(tmp_path, "val")
    assert splits_of(tmp_path) == ["train"]
    _cifar(tmp_path, 100, _dumped)
    with pytest.raises(UnfitError, match="holds both CIFAR-10 and CIFAR-100"):
        open_listing(tmp_path, "train")


def test_a_file_called_meta_does_not_make_a_cifar(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "ant").mkdir(parents=True)
        (tmp_path / split / "ant" / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "meta").write_text("collected by hand")
    assert open_listing(tmp_path, "train").layout == "class folders"


# --------------------------------------------------------------------------------------------------------- WebDataset


def _sample(number: int, label: int, form: str, key: str) -> list[tuple[str, bytes]]:
    image = (f"{key}.jpg", jpeg(number))
    if form == "cls":
        return [(f"{key}.cls", str(label).encode()), image]
    said = {"label": label, "width": 20, "filename": f"{number}.JPEG"}
    return [image, (f"{key}.json", json.dumps(said).encode())]


@pytest.mark.parametrize("form", ["cls", "json"])
def test_webdataset_by_folders_by_names_and_by_pattern(tmp_path: Path, form: str) -> None:
    labels = [2, 0, 1, 1, 0, 2, 0]
    samples = [_sample(i, label, form, f"{i:09}") for i, label in enumerate(labels)]
    (tmp_path / "folders" / "train").mkdir(parents=True)
    (tmp_path / "folders" / "val").mkdir()
    (tmp_path / "names").mkdir()
    for shard, part in enumerate((samples[:3], samples[3:5], samples[5:])):
        files = [file for sample in part for file in sample]
        split, place = ("train", shard) if shard < 2 else ("val", 0)
        tar_of(files, tmp_path / "folders" / split / f"{place:05}.tar")
        tar_of(files, tmp_path / "names" / f"in-{split}{'idation' if split == 'val' else ''}-{place:06}.tar")
    pattern = f"{tmp_path}/names/in-train-{{000000..000001}}.tar::{tmp_path}/names/in-validation-000000.tar"
    for root in (tmp_path / "folders", tmp_path / "names", locate(pattern)):
        assert splits_of(root) == ["train", "val"]
        train, val = open_listing(root, "train"), open_listing(root, "val")
        assert train.labels.tolist() == labels[:5]
        assert val.labels.tolist() == labels[5:]
        assert train.classes == val.classes == ["0", "1", "2"]
        assert [bytes(train.files.encoded(i)) for i in range(5)] == [jpeg(i) for i in range(5)]
        assert [bytes(val.files.encoded(i)) for i in range(2)] == [jpeg(5), jpeg(6)]
    (tmp_path / "names" / "classnames.txt").write_text("tench\ngold fish\nshark\n")
    assert open_listing(tmp_path / "names", "val").classes == ["tench", "gold fish", "shark"]
    assert len(ImageFolder(locate(pattern), "train")) == 5


def test_webdataset_whose_keys_are_wnids(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    samples = [_sample(i, label, "cls", f"{WNIDS[label]}_{i}") for i, label in enumerate((1, 0, 1))]
    tar_of([file for sample in samples for file in sample], tmp_path / "train" / "00000.tar")
    assert open_listing(tmp_path, "train").classes == list(WNIDS[:2])
    (tmp_path / "classnames.txt").write_text("ant\nbee\n\n")
    assert open_listing(tmp_path, "train").classes == ["ant", "bee"]


def test_webdataset_that_is_damaged(tmp_path: Path) -> None:
    good, tar = _sample(0, 0, "cls", "a"), tmp_path / "in-train-0.tar"
    for files, expected in (
        ([*good, ("b.jpg", jpeg(1))], "sample b has no label"),
        ([*good, ("b.jpg", jpeg(1)), ("b.cls", b"cat")], r"b\.cls holds b'cat'"),
        ([*good, *_sample(1, -1, "cls", "b")], "b.jpg: has label -1, .*0 to 0"),
    ):
        tar_of(files, tar)
        with pytest.raises(UnfitError, match=expected):
            open_listing(tmp_path, "train")
    tar.write_bytes(b"")  # a download that failed, beside one that did not
    tar_of(good, tmp_path / "in-train-1.tar")
    with pytest.raises(UnfitError, match=r"in-train-0\.tar: cannot be read: empty file"):
        open_listing(tmp_path, "train")
    (tmp_path / "in-train-1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"in-train-1\.tar .*shard 2 of 2"):
        open_listing(locate(f"{tmp_path}/in-train-{{0..1}}.tar"), "train")
    with pytest.raises(ValueError, match="braces must hold a range"):
        open_listing(locate(f"{tmp_path}/in-train-{{0}}.tar"), "train")
    with pytest.raises(FileNotFoundError, match="'val'"):
        open_listing(locate(f"{tmp_path}/in-{{train,train}}-0.tar"), "val")


# ------------------------------------------------------------------------------------------------------ lists of files


def test_inaturalist(tmp_path: Path) -> None:
    categories = [{"id": number, "name": f"species {number}"} for number in (7, 2, 5)]
    for split, images in (("train", [(11, 5), (12, 2), (13, 7), (14, 5)]), ("val", [(21, 7)])):
        listed = [{"id": i, "file_name": f"train_val2019/Fungi/{c}/{i}.jpg"} for i, c in images]
        for (number, _), image in zip(images, listed, strict=True):
            (tmp_path / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)  # type: ignore[operator]
            (tmp_path / image["file_name"]).write_bytes(jpeg(number))  # type: ignore[operator]
        annotations = [{"id": i, "image_id": i, "category_id": c} for i, c in reversed(images)]
        said = {"images": listed, "annotations": annotations, "categories": categories}
        (tmp_path / f"{split}2019.json").write_text(json.dumps(said))
    train, val = open_listing(tmp_path, "train"), open_listing(tmp_path, "val")
    assert train.classes == val.classes == ["species 2", "species 5", "species 7"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([1, 0, 2, 1], [2])
    assert bytes(train.files.encoded(2)) == jpeg(13)
    (tmp_path / "val2019.json").write_text('{"images": []}')
    with pytest.raises(UnfitError, match=r"val2019\.json: .*iNaturalist"):
        open_listing(tmp_path, "val")
    (tmp_path / "val2019.json").unlink()
    with pytest.raises(FileNotFoundError, match="no list of this split"):
        open_listing(tmp_path, "val")
    (tmp_path / "train_val2019").rename(tmp_path / "elsewhere")
    with pytest.raises(UnfitError, match=r"train2019\.json"):
        open_listing(tmp_path, "train")


CATEGORIES = ("/a/airfield", "/a/apartment_building/outdoor", "/z/zen_garden")


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Places365 at 256 px, with its lists."""
    train = [("/z/zen_garden/00000001.jpg", 2), ("/a/airfield/00000002.jpg", 0), ("/a/airfield/00000001.jpg", 0)]
    train += [("/a/apartment_building/outdoor/00000001.jpg", 1)]
    val = [("Places365_val_00000002.jpg", 1), ("Places365_val_00000001.jpg", 2)]
    for seed, (folder, listed) in enumerate((("data_256_standard", train), ("val_256", val))):
        for number, (name, _) in enumerate(listed):
            file = tmp_path / folder / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(100 * seed + number))
    lists = {"places365_train_standard.txt": train, "places365_val.txt": val}
    lists["categories_places365.txt"] = [(name, number) for number, name in enumerate(CATEGORIES)]
    for name, pairs in lists.items():
        (tmp_path / name).write_text("".join(f"{file} {label}\n" for file, label in pairs))
    return tmp_path


def test_places365_equals_torchvisions(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places365, "_check_integrity", lambda self, *_: True)  # not the files of the known MD5
    for split, theirs_split in (("train", "train-standard"), ("val", "val")):
        theirs = Places365(str(places), split=theirs_split, small=True)
        found = open_listing(places, split)  # type: ignore[arg-type]
        assert found.classes == theirs.classes == list(CATEGORIES)
        assert found.labels.tolist() == theirs.targets
        assert [found.files.text(place) for place in range(len(found.files))] == [file for file, _ in theirs.imgs]


def test_places365_by_its_folders_alone(places: Path) -> None:
    by_list = open_listing(places, "train")
    expected = sorted((by_list.files.text(i), int(label)) for i, label in enumerate(by_list.labels))
    for name in ("places365_train_standard.txt", "categories_places365.txt", "places365_val.txt"):
        (places / name).unlink()
    found = open_listing(places, "train")
    assert found.classes == list(CATEGORIES)
    assert [(found.files.text(i), int(label)) for i, label in enumerate(found.labels)] == expected
    with pytest.raises(UnfitError, match=r"val_256: .*places365_val\.txt"):
        open_listing(places, "val")


# -------------------------------------------------------------------------------------------------------------- subset


def test_a_subset_by_file_names(tars: Path, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "1percent.txt").write_text("n15075141_100.JPEG\nn01440764_99.JPEG\n\nn01440764/n01440764_98.JPEG\n")
    for root in (tars, folders):
        part = open_listing(root, "train", tmp_path / "1percent.txt")
        names = [part.files.name(place).rpartition("/")[2] for place in range(len(part.files))]
        assert names == ["n01440764_98.JPEG", "n01440764_99.JPEG", "n15075141_100.JPEG"]
        assert part.labels.tolist() == [0, 0, 3]
        assert part.classes == list(WNIDS)
        assert "3 images of 1percent.txt" in str(part.facts["subset"])
    images = ImageFolder(tars, "train", subset=tmp_path / "1percent.txt")
    assert len(images) == 3
    assert images.facts() == part.facts
    assert torch.equal(images[1][0], ImageFolder(folders, "train")[2][0])


def test_a_subset_of_cifar_keeps_its_pixels(tmp_path: Path) -> None:
    _cifar(tmp_path, 10, _dumped)
    (tmp_path / "some.txt").write_text("data_batch_2/00003.ppm\ndata_batch_1/00001.ppm\n")
    whole, part = ImageFolder(tmp_path, "train"), ImageFolder(tmp_path, "train", subset=tmp_path / "some.txt")
    assert part.pixels is not None
    assert torch.equal(part.pixels[0], whole[1][0]) and torch.equal(part.pixels[1], whole[7][0])
    assert part.labels.tolist() == whole.labels[[1, 7]].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names no images"),
        ("n01440764_7.JPEG\nn01440764_99.JPEG\n", "names 2 images, of which 1 .*n01440764_7.JPEG"),
        ("1.jpg\n", "names 1.jpg, .* 2 times"),
    ],
)
def test_subsets_that_do_not_fit(folders: Path, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    root = folders
    if "1.jpg" in text:
        root = tmp_path / "same"
        for name in ("ant", "bee"):
            (root / name).mkdir(parents=True)
            (root / name / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(UnfitError, match=expected):
        open_listing(root, "train", tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        open_listing(root, "train", tmp_path / "none.txt")
