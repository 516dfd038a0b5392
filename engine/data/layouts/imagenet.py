"""ImageNet's splits on disk; each split may have another of these forms.

    ROOT/train/<class>/...                           folders of classes, sorted by name: any data set
    ROOT/train/n01440764.tar ...                     a tar for each class
    ROOT/ILSVRC2012_img_train.tar                    as published: a tar of these; also in ROOT/train/, not unpacked
    ROOT/val/<class>/...                             folders of classes
    ROOT/val/ILSVRC2012_val_00000001.JPEG ...        loose images, and a file that says what they are (val_labels.py)
    ROOT/ILSVRC2012_img_val.tar                      as published, with ILSVRC2012_devkit_t12.tar.gz or such a file
    ROOT/train/index.safetensors                     packed by `mimbench data shrink` (engine/data/shards.py)
    ROOT/train/*.tar  ROOT/*train*.tar               WebDataset shards (webdataset.py)
    ROOT/<class>/...                                 no splits: both splits are all images

ROOT is the data set's directory, its subfolder `images/`, or where Kaggle's archive puts the images
(ILSVRC/Data/CLS-LOC). Classes of validation images are places in the training split's list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from mimbench.engine.data.datasets import Split, unfit
from mimbench.engine.data.folders import Paths, class_names, image_files, is_data, is_image, labelled_files
from mimbench.engine.data.layouts import webdataset
from mimbench.engine.data.layouts.listing import Listing, by_class_and_name, require_known
from mimbench.engine.data.layouts.parts import KAGGLE, split_root
from mimbench.engine.data.layouts.tars import TarFiles, tar_files
from mimbench.engine.data.layouts.val_labels import class_of_each
from mimbench.engine.data.shards import Shards, packed

TARS: dict[Split, str] = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
WNID = re.compile(r"n\d{8}")
ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet, whose images lie in val/images/


def splits_of(root: Path) -> list[Split]:
    """The splits at `root`; empty if the data set has no splits."""
    inner = split_root(root)
    both: tuple[Split, Split] = ("train", "val")
    return [split for split in both if _found(inner, split)]


def _found(inner: Path, split: Split) -> bool:
    return (inner / split).is_dir() or _published(inner, split) is not None or bool(webdataset.shards(inner, split))


def _published(inner: Path, split: Split) -> Path | None:
    """The published tar of `split`, if it stands in place of the split's folder or alone in it."""
    directory = inner / split
    if not directory.is_dir():
        return tar if (tar := inner / TARS[split]).is_file() else None
    unpacked = any(place.is_dir() or is_image(place.name) for place in directory.iterdir() if place.name[0] != ".")
    return tar if (tar := directory / TARS[split]).is_file() and not unpacked else None


def open_listing(root: Path, split: Split) -> Listing:
    """The images of `split`.

    Raises:
        FileNotFoundError: if `root` is not there, or has the other split only.
        UnfitError: (a ValueError) if there are no images, classes that the training split does not have, or no labels.
    """
    inner = split_root(root)
    if not inner.is_dir():
        raise FileNotFoundError(f"{root} does not exist; name a directory with train/ and val/, folders of classes")
    there = splits_of(root)
    if not there:
        return _folders(inner, class_names(inner), splitless=True) if not packed(inner) else _packed(inner, True)
    if split not in there:
        raise FileNotFoundError(f"{inner} has {there[0]}/ but no {split}/; add the {split} images, in class folders")
    if shards := webdataset.shards(inner, split):
        return webdataset.open_listing(shards, inner, webdataset.shards(inner, "train"))
    return _train(inner) if split == "train" else _val(inner, root, training_classes(inner))


def training_classes(inner: Path) -> list[str] | None:
    """The classes of the training split, from file names only; None if there is no such split."""
    directory = inner / "train"
    if shards := webdataset.shards(inner, "train"):
        return webdataset.open_listing(shards, inner, shards).classes
    if _published(inner, "train"):
        return _train(inner).classes
    if not directory.is_dir():
        return None
    if packed(directory):
        return Shards(directory).classes
    return sorted(tar.stem for tar in _class_tars(directory)) or class_names(directory)


def _train(inner: Path) -> Listing:
    directory = inner / "train"
    if tar := _published(inner, "train"):
        return _by_tar(tar_files([tar], "nested"), TARS["train"])
    if packed(directory):
        return _packed(directory)
    if tars := _class_tars(directory):
        return _by_tar(tar_files(tars, "plain", [tar.stem for tar in tars]), "a tar for each class")
    return _folders(directory, class_names(directory))


def _val(inner: Path, root: Path, classes: list[str] | None) -> Listing:
    directory = inner / "val"
    if directory.is_dir() and packed(directory):
        return _packed(directory)
    places = _label_places(inner, root)
    if tar := _published(inner, "val"):
        return _by_labels(tar_files([tar], "plain"), places, classes, TARS["val"])
    loose = _loose(directory)
    if loose is not None:
        names = sorted(image_files(loose, ""))
        return _by_labels(Paths(loose, names), places, classes, f"{directory.name}/ without class folders")
    return _folders(directory, class_names(directory) if classes is None else classes)


def _packed(directory: Path, splitless: bool = False) -> Listing:
    shards = Shards(directory)
    facts: dict[str, object] = {"images": shards.description}
    return Listing(shards, shards.labels, shards.classes, "packed by mimbench", splitless, facts=facts)


def _folders(directory: Path, classes: list[str], splitless: bool = False) -> Listing:
    names, labels = labelled_files(directory, classes)
    numbers = torch.tensor(labels, dtype=torch.int64)
    return Listing(Paths(directory, names), numbers, classes, "class folders", splitless)


def _class_tars(directory: Path) -> list[Path]:
    """Tars named by wnid, where these are what is to be read. Others may hold anything, and are not taken for classes.

    Raises:
        UnfitError: (a ValueError) if some are unpacked and others are not: classes would be missing without a word.
    """
    tars = sorted(tar for tar in directory.glob("n*.tar") if WNID.fullmatch(tar.stem))
    folders = {place.name for place in directory.iterdir() if WNID.fullmatch(place.name) and place.is_dir()}
    packed_still = [tar for tar in tars if tar.stem not in folders]
    if folders and packed_still:
        what = f"is not unpacked, like {len(packed_still)} of {len(folders | {tar.stem for tar in tars})} classes"
        raise unfit(packed_still[0], what, "unpack all of them, or remove the folders to read the tars")
    return packed_still


def _by_tar(files: TarFiles, layout: str) -> Listing:
    """Images whose class is the tar that holds them."""
    return Listing(files, torch.from_numpy(files.label), files.classes, layout)


def _loose(directory: Path) -> Path | None:
    """The directory of images without class folders: `directory`, or Tiny-ImageNet's val/images; else None."""
    if (directory / ANNOTATIONS).is_file() and any(_images_in(directory / "images")):
        return directory / "images"
    if not any(_images_in(directory)):
        return None
    folders = (place.name for place in directory.iterdir() if place.is_dir() and is_data(place.name))
    in_folders = any(any(image_files(directory, name)) for name in folders)  # not so of a development kit unpacked here
    return None if in_folders else directory


def _images_in(directory: Path) -> list[Path]:
    return [file for file in directory.iterdir() if is_image(file.name)] if directory.is_dir() else []


def _label_places(inner: Path, root: Path) -> list[Path]:
    """Directories that may hold a file of labels."""
    above = [inner.parents[2], inner.parents[1]] if inner.match(KAGGLE) else []
    return list(dict.fromkeys([inner / "val", inner, inner / "meta", root, *above]))


def _by_labels(files: Paths | TarFiles, places: Sequence[Path], classes: list[str] | None, layout: str) -> Listing:
    of_each = class_of_each([files.name(place) for place in range(len(files))], places, classes)
    known = sorted(set(of_each)) if classes is None else classes
    if classes is None and all(name.isdecimal() for name in known):
        known.sort(key=int)
    numbers = {name: number for number, name in enumerate(known)}
    labels = [require_known(numbers, name, files[place]) for place, name in enumerate(of_each)]
    if not labels:
        raise unfit(files.root, "holds no images", "add them")
    return by_class_and_name(files, labels, known, layout)
