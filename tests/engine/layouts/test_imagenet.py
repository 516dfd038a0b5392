"""ImageNet in every form it is found in gives the same images, labels and order as its folders do."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.datasets import imagenet as original

from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.datasets import Split, UnfitError
from mimbench.engine.data.images import ImageFolder, RandomCrops
from mimbench.engine.data.layouts.recognise import open_listing, splits_of
from mimbench.engine.data.shrink import Shrinking, shrink
from tests.engine.layouts.made import WNIDS, class_tar, jpeg, tar_of


def _equal(root: Path, folders: Path, split: Split) -> None:
    theirs = TorchvisionFolder(str(folders / split))
    found, plain = open_listing(root, split), open_listing(folders, split)
    assert found.classes == theirs.classes == list(WNIDS)
    assert found.labels.tolist() == theirs.targets
    assert plain.labels.tolist() == theirs.targets
    for place, (path, _) in enumerate(theirs.samples):
        assert found.files.encoded(place) == Path(path).read_bytes()
        assert found.files.name(place).rpartition("/")[2] == Path(path).name
        assert plain.files.text(place) == path


def test_tars_as_published_equal_the_unpacked_folders(tars: Path, folders: Path) -> None:
    assert splits_of(tars) == ["train", "val"]
    _equal(tars, folders, "train")
    _equal(tars, folders, "val")
    images = ImageFolder(tars, "train", cache=False)
    for ours, theirs in zip(images, ImageFolder(folders, "train", cache=False), strict=False):
        assert torch.equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]


def test_tars_moved_into_the_folders_of_their_splits(tars: Path, folders: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "moved" / split).mkdir(parents=True)
        (tars / f"ILSVRC2012_img_{split}.tar").rename(tmp_path / "moved" / split / f"ILSVRC2012_img_{split}.tar")
    (tars / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "moved" / "ILSVRC2012_devkit_t12.tar.gz")
    _equal(tmp_path / "moved", folders, "train")
    _equal(tmp_path / "moved", folders, "val")
    for split in ("train", "val"):  # unpacked beside them, as by the usual script
        shutil.copytree(folders / split, tmp_path / "moved" / split, dirs_exist_ok=True)
        assert open_listing(tmp_path / "moved", split).layout == "class folders"  # type: ignore[arg-type]


def test_a_tar_for_each_class(tmp_path: Path, folders: Path) -> None:
    (tmp_path / "train").mkdir()
    for folder in (folders / "train").iterdir():
        (tmp_path / "train" / f"{folder.name}.tar").write_bytes(class_tar(folder))
    shutil.copytree(folders / "val", tmp_path / "val")
    _equal(tmp_path, folders, "train")
    _equal(tmp_path, folders, "val")


def test_tars_that_are_not_of_classes_are_not_taken_for_them(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    tar_of([("ant/1.jpg", jpeg(1))], tmp_path / "train" / "part1.tar")
    with pytest.raises(UnfitError, match="train: holds no images"):
        open_listing(tmp_path, "train")


def test_tars_of_which_some_are_unpacked(tmp_path: Path, folders: Path) -> None:
    shutil.copytree(folders / "train", tmp_path / "train")
    for wnid in WNIDS[:2]:
        (tmp_path / "train" / f"{wnid}.tar").write_bytes(class_tar(tmp_path / "train" / wnid))
    assert open_listing(tmp_path, "train").layout == "class folders"  # the tars were kept
    shutil.rmtree(tmp_path / "train" / WNIDS[1])
    with pytest.raises(UnfitError, match=rf"{WNIDS[1]}\.tar: .*1 of 4 classes"):
        open_listing(tmp_path, "train")


def _kit_packed(root: Path, _wnids: list[str], _kit: Path, packed: bytes) -> None:
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)


def _kit_unpacked(root: Path, _wnids: list[str], kit: Path, _packed: bytes) -> None:
    shutil.copytree(kit, root / kit.name)


def _kit_unpacked_beside_the_images(root: Path, _wnids: list[str], kit: Path, _packed: bytes) -> None:
    shutil.copytree(kit, root / "val" / kit.name)


def _truth_and_kit(root: Path, _wnids: list[str], kit: Path, packed: bytes) -> None:
    shutil.copy(kit / "data" / "ILSVRC2012_validation_ground_truth.txt", root / "val")
    (root / "val" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)


def _truth_and_meta(root: Path, _wnids: list[str], kit: Path, _packed: bytes) -> None:
    for file in (kit / "data").iterdir():
        shutil.copy(file, root)


def _caffe(root: Path, wnids: list[str], _kit: Path, _packed: bytes) -> None:
    lines = (f"ILSVRC2012_val_{i + 1:08}.JPEG {WNIDS.index(wnid)}\n" for i, wnid in enumerate(wnids))
    (root / "val.txt").write_text("".join(lines))


def _names_and_wnids(root: Path, wnids: list[str], _kit: Path, _packed: bytes) -> None:
    lines = (f"val/ILSVRC2012_val_{i + 1:08}.JPEG {wnid}\n" for i, wnid in enumerate(wnids))
    (root / "meta").mkdir()
    (root / "meta" / "val.txt").write_text("".join(reversed(list(lines))))


def _tensorflow(root: Path, wnids: list[str], _kit: Path, _packed: bytes) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(wnids) + "\n")


def _kaggle(root: Path, wnids: list[str], _kit: Path, _packed: bytes) -> None:
    lines = (f"ILSVRC2012_val_{i + 1:08},{wnid} 1 2 30 40 {wnid} 5 6 7 8 \n" for i, wnid in enumerate(wnids))
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines) + "\n")  # a blank line


@pytest.mark.parametrize(
    "write",
    [
        _kit_packed,
        _kit_unpacked,
        _kit_unpacked_beside_the_images,
        _truth_and_kit,
        _truth_and_meta,
        _caffe,
        _names_and_wnids,
        _tensorflow,
        _kaggle,
    ],
)
def test_a_flat_validation_folder_by_any_file_of_labels(
    flat: Path, folders: Path, val_wnids: list[str], kit: Path, packed_kit: bytes, write: Callable[..., None]
) -> None:
    write(flat, val_wnids, kit, packed_kit)
    _equal(flat, folders, "val")
    _equal(flat, folders, "train")


def test_archives_are_what_torchvision_unpacks(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original, "_verify_archive", lambda *_: None)  # these are not the archives of the known MD5
    theirs = tmp_path / "theirs"
    shutil.copytree(tars, theirs)
    original.parse_devkit_archive(str(theirs))
    original.parse_train_archive(str(theirs))
    original.parse_val_archive(str(theirs))
    _equal(tars, theirs, "train")
    _equal(tars, theirs, "val")


def test_kaggles_archive(tmp_path: Path, flat: Path, folders: Path, val_wnids: list[str]) -> None:
    inner = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    inner.parent.mkdir(parents=True)
    flat.rename(inner)
    _kaggle(tmp_path / "kaggle", val_wnids, tmp_path, b"")
    for root in (tmp_path / "kaggle", inner):
        _equal(root, folders, "train")
        _equal(root, folders, "val")


def test_tiny_imagenet(tmp_path: Path) -> None:
    for number, wnid in enumerate(WNIDS):
        (tmp_path / "train" / wnid / "images").mkdir(parents=True)
        (tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG").write_bytes(jpeg(number))
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    (tmp_path / "val" / "images").mkdir(parents=True)
    of = [2, 0, 3, 0, 1]
    for number in range(5):
        (tmp_path / "val" / "images" / f"val_{number}.JPEG").write_bytes(jpeg(10 + number))
    (tmp_path / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n" for number, label in enumerate(of))
    )
    train, val = open_listing(tmp_path, "train"), open_listing(tmp_path, "val")
    assert train.classes == val.classes == list(WNIDS)
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert [(val.files[i].name, int(val.labels[i])) for i in range(5)] == [
        ("val_1.JPEG", 0),
        ("val_3.JPEG", 0),
        ("val_4.JPEG", 1),
        ("val_0.JPEG", 2),
        ("val_2.JPEG", 3),
    ]
    for number, label in enumerate(of):  # as many people rearrange it
        (tmp_path / "val" / WNIDS[label]).mkdir(exist_ok=True)
        (tmp_path / "val" / "images" / f"val_{number}.JPEG").rename(
            tmp_path / "val" / WNIDS[label] / f"val_{number}.JPEG"
        )
    again = open_listing(tmp_path, "val")
    assert [again.files[i].name for i in range(5)] == [val.files[i].name for i in range(5)]
    assert torch.equal(again.labels, val.labels)


def test_validation_alone_counts_its_own_classes(flat: Path, val_wnids: list[str], kit: Path) -> None:
    shutil.rmtree(flat / "train")
    _kit_unpacked(flat, val_wnids, kit, b"")
    assert splits_of(flat) == ["val"]
    assert open_listing(flat, "val").classes == sorted(set(val_wnids))
    with pytest.raises(FileNotFoundError, match="has val/ but no train/"):
        open_listing(flat, "train")


# ---------------------------------------------------------------------------------------------------------- bad input


def test_ground_truth_without_its_kit_is_not_guessed(flat: Path, kit: Path) -> None:
    shutil.copy(kit / "data" / "ILSVRC2012_validation_ground_truth.txt", flat)
    with pytest.raises(UnfitError, match=r"ground_truth\.txt: .*ILSVRC2012_ID.*meta\.mat"):
        open_listing(flat, "val")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 0\n", "ILSVRC2012_val_00000002.JPEG"),
        ("val.txt", "".join(f"ILSVRC2012_val_{i:08}.JPEG {1 + i % 4}\n" for i in range(1, 9)), "classes 1 to 4"),
        (
            "val.txt",
            "".join(f"ILSVRC2012_val_{i:08}.JPEG 9\n" for i in range(1, 9)),
            "9 to 9, .* 4,",
        ),
        ("val.txt", "".join(f"ILSVRC2012_val_{i:08}.JPEG n00000001\n" for i in range(1, 9)), "class n00000001, which"),
        ("val.txt", "just words in a line\n", "holds (nothing|.*just)"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nnothing\n", "nothing"),
        ("imagenet_2012_validation_synset_labels.txt", "n01440764\n", "1 lines.*ILSVRC2012_val_00000002"),
    ],
)
def test_files_of_labels_that_do_not_fit(flat: Path, name: str, text: str, expected: str) -> None:
    (flat / name).write_text(text)
    with pytest.raises(UnfitError, match=expected):
        open_listing(flat, "val")


def test_a_flat_folder_without_labels_says_what_would_do(flat: Path) -> None:
    with pytest.raises(UnfitError, match=r"has 8 images but no class folders and no file of labels; .*val\.txt"):
        open_listing(flat, "val")


def test_a_damaged_kit(flat: Path, packed_kit: bytes) -> None:
    (flat / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed_kit[:200])
    with pytest.raises(UnfitError, match="development kit"):
        open_listing(flat, "val")
    broken = tar_of([("k/meta.mat", b"no"), ("k/ILSVRC2012_validation_ground_truth.txt", b"1\n")], mode="w:gz")
    (flat / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(broken)
    with pytest.raises(UnfitError, match=r"meta\.mat"):
        open_listing(flat, "val")


# --------------------------------------------------------------------------------------------------------------- tars


def test_the_list_of_a_tar_is_made_once(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_listing(tars, "train")
    index = tars / ".ILSVRC2012_img_train.tar.mimbench-index"
    made = index.stat().st_mtime_ns
    assert (
        open_listing(tars, "train").files.text(0)
        == first.files.text(0)
        == (f"{tars}/ILSVRC2012_img_train.tar/n01440764/n01440764_100.JPEG")
    )
    assert index.stat().st_mtime_ns == made
    tar_of([("n00000001.tar", tar_of([("a.JPEG", jpeg(5))]))], tars / "ILSVRC2012_img_train.tar")
    assert open_listing(tars, "train").classes == ["n00000001"]
    index.write_bytes(b"damaged")
    assert open_listing(tars, "train").classes == ["n00000001"]


def test_a_directory_that_cannot_be_written_has_its_list_in_the_cache(
    tars: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimbench.engine.data.datasets import cache_directory
    from mimbench.engine.data.layouts import tars as module

    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    _equal(tars, folders, "train")
    assert not list(tars.glob(".*.mimbench-index"))
    assert len(list((cache_directory() / "indices").glob("*.mimbench-index"))) == 1
    _equal(tars, folders, "train")


def test_tars_are_read_by_processes_that_load(tars: Path, folders: Path) -> None:
    images = ImageFolder(tars, "train", cache=False)
    images[0]  # the descriptor is open before the processes start
    loader = DataLoader(images, batch_size=1, num_workers=2, multiprocessing_context="fork")
    theirs = ImageFolder(folders, "train", cache=False)
    for place, (image, label) in enumerate(loader):
        assert torch.equal(image[0], theirs[place][0])
        assert int(label) == theirs[place][1]


def test_a_listing_travels_to_another_process(tars: Path) -> None:
    files = open_listing(tars, "val").files
    files.encoded(0)
    again = pickle.loads(pickle.dumps(files))
    assert [again.encoded(place) for place in range(len(files))] == [files.encoded(i) for i in range(len(files))]


def test_tars_that_are_damaged(tars: Path) -> None:
    train, val = tars / "ILSVRC2012_img_train.tar", tars / "ILSVRC2012_img_val.tar"
    train.write_bytes(train.read_bytes()[: train.stat().st_size // 2])
    with pytest.raises(UnfitError, match=r"ILSVRC2012_img_train\.tar: cannot be read.*checksum"):
        open_listing(tars, "train")
    train.unlink()
    val.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UnfitError, match=r"ILSVRC2012_img_val\.tar: cannot be read"):
        open_listing(tars, "val")
    tar_of([("readme.txt", b"text")], val)
    with pytest.raises(UnfitError, match="holds no images"):
        open_listing(tars, "val")


def test_a_tar_that_gets_shorter_while_it_is_read(tars: Path) -> None:
    images = ImageFolder(tars, "val", cache=False)
    with (tars / "ILSVRC2012_img_val.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_val\.tar: is truncated"):
        list(evaluation_loader(images, 2, workers=0))


def test_names_cost_no_process_a_copy(tars: Path) -> None:
    files = open_listing(tars, "train").files
    assert isinstance(files._names._block, np.ndarray)
    assert not files._names._block.flags.owndata  # it is the mapped file


# ------------------------------------------------------------------------------------------------- what is done with it


def test_pretraining_draws_the_same_crops_from_tars(tars: Path, folders: Path) -> None:
    first = []
    for root, workers in ((folders, 0), (tars, 2)):
        crops = RandomCrops(ImageFolder(root, "train", cache=False), 8, noise=4)
        batches = Batches(crops, 4, seed=3, workers=workers).starting_at(1)
        first.append(next(batches))
    assert torch.equal(first[0].image, first[1].image)
    assert torch.equal(first[0].label, first[1].label)
    assert torch.equal(first[0].noise, first[1].noise)


def test_tars_and_flat_folders_are_shrunk_as_their_folders_are(tars: Path, folders: Path, tmp_path: Path) -> None:
    for name, root in (("one", folders), ("two", tars)):
        assert [done.images for done in shrink(root, tmp_path / name, Shrinking(16), 0)] == [10, 8]
    for split in ("train", "val"):
        one, two = (open_listing(tmp_path / name, split) for name in ("one", "two"))  # type: ignore[arg-type]
        assert torch.equal(one.labels, two.labels)
        assert one.classes == two.classes
        assert [one.files.name(i) for i in range(len(one.files))] == [two.files.name(i) for i in range(len(two.files))]
        assert [one.files.encoded(i) for i in range(len(one.files))] == [
            two.files.encoded(i) for i in range(len(two.files))
        ]
