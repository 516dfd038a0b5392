"""Data sets whose labels are in files of lists: iNaturalist (2017 to 2021) and Places365.

    ROOT/train2019.json  ROOT/val2019.json  ROOT/train_val2019/...       iNaturalist, as its competition has it
    ROOT/places365_train_standard.txt  ROOT/places365_val.txt            Places365, with categories_places365.txt and
        data_large/ or data_256/ (or data_*_standard/), val_large/ or val_256/
    ROOT/data_256/a/airfield/...  ROOT/val_256/..., or ROOT/train/a/...  Places365's own folders, a letter above a class

Classes of iNaturalist are its categories in the order of their ids; those of Places365 are in the order of
`categories_places365.txt`. Images keep the order of the lists. (Places365 as `train/airfield/` is a matter of folders.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mimbench.engine.data.datasets import Split, image_root, unfit
from mimbench.engine.data.folders import Paths, image_files, is_data
from mimbench.engine.data.layouts.listing import Listing

CATEGORIES = "categories_places365.txt"
TRAIN_LISTS = ("places365_train_standard.txt", "places365_train_challenge.txt")
VAL_LIST = "places365_val.txt"
PLACES_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("data_large_standard", "data_large", "data_256_standard", "data_256", "train"),
    "val": ("val_large", "val_256", "val"),
}


def is_inaturalist(root: Path) -> bool:
    """Whether iNaturalist's lists are at `root`."""
    return bool(sorted(root.glob("train20[0-9][0-9].json")) or sorted(root.glob("val20[0-9][0-9].json")))


def open_inaturalist(root: Path, split: Split) -> Listing:
    """iNaturalist's images of `split`.

    Raises:
        FileNotFoundError: if the list of this split is not there.
        UnfitError: (a ValueError) if it is damaged, or the images are not there.
    """
    lists = sorted(root.glob(f"{split}20[0-9][0-9].json"))
    if len(lists) != 1:
        what = "no list of this split" if not lists else f"lists of several years, {', '.join(x.name for x in lists)}"
        raise FileNotFoundError(f"{root} has {what}; it needs one {split}YEAR.json (2017 to 2021)")
    try:
        said: Any = json.loads(lists[0].read_text(encoding="utf-8"))
        categories = sorted(said["categories"], key=lambda one: one["id"])
        places = {one["id"]: place for place, one in enumerate(categories)}
        label_of = {one["image_id"]: places[one["category_id"]] for one in said["annotations"]}
        pairs = [(str(one["file_name"]), label_of[one["id"]]) for one in said["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise unfit(lists[0], f"is not an iNaturalist list ({error!r})", "download this file again") from None
    names = [str(one["name"]) for one in categories]
    return _listing(root, [""], pairs, names, lists[0], "iNaturalist's lists")


def is_places365(root: Path) -> bool:
    """Whether Places365 is at `root` with its lists, or its folders of letters."""
    if any((root / name).is_file() for name in (*TRAIN_LISTS, VAL_LIST, CATEGORIES)):
        return any((root / name).is_dir() for names in PLACES_FOLDERS.values() for name in names)
    return any(_lettered(root / name) for name in PLACES_FOLDERS["train"])


def _lettered(directory: Path) -> bool:
    """Whether all folders in `directory` are single letters that hold folders and no images."""
    if not directory.is_dir():
        return False
    folders = [place for place in directory.iterdir() if place.is_dir() and is_data(place.name)]
    if len(folders) < 2 or not all(len(place.name) == 1 and place.name.isalpha() for place in folders):
        return False
    return all(next(place.iterdir(), place).is_dir() for place in folders)


def open_places365(root: Path, split: Split) -> Listing:
    """Places365's images of `split`.

    Raises:
        FileNotFoundError: if the folder of this split is not there.
        UnfitError: (a ValueError) if a list is missing or damaged, or the images are not there.
    """
    lists = [root / name for name in (TRAIN_LISTS if split == "train" else (VAL_LIST,)) if (root / name).is_file()]
    folders = [name for name in PLACES_FOLDERS[split] if (root / name).is_dir()]
    if not folders:
        raise FileNotFoundError(f"{root} has none of {', '.join(PLACES_FOLDERS[split])}; unpack the images there")
    classes = _categories(root)
    if lists:
        pairs = _pairs(lists[0])
        names = classes or _classes_of(root, pairs, lists[0])
        return _listing(root, folders, pairs, names, lists[0], "Places365's lists")
    if not _lettered(root / folders[0]):
        raise unfit(root / folders[0], "holds images of unknown class", f"put {VAL_LIST} into {root}")
    found = sorted(image_files(root / folders[0], ""))
    known = classes or sorted({_folder_of(name) for name in _train_files(root, found, split)})
    numbers = {name: number for number, name in enumerate(known)}
    if odd := next((name for name in found if _folder_of(name) not in numbers), None):
        raise unfit(
            root / folders[0] / odd, "belongs to no class of the training split", "add the class there, or remove it"
        )
    labels = torch.tensor([numbers[_folder_of(name)] for name in found], dtype=torch.int64)
    return Listing(Paths(root / folders[0], found), labels, known, "Places365's folders")


def _train_files(root: Path, found: list[str], split: Split) -> list[str]:
    folders = [root / name for name in PLACES_FOLDERS["train"] if (root / name).is_dir()]
    return found if split == "train" or not folders else list(image_files(folders[0], ""))


def _folder_of(name: str) -> str:
    """The class as Places365 writes it: /a/airfield."""
    return "/" + name.rpartition("/")[0]


def _categories(root: Path) -> list[str] | None:
    file = root / CATEGORIES
    if not file.is_file():
        return None
    pairs = _pairs(file)
    names = [name for name, _ in sorted(pairs, key=lambda pair: pair[1])]
    if sorted(number for _, number in pairs) != list(range(len(pairs))):
        raise unfit(file, "does not number its classes 0, 1, 2, ...", "download this file again")
    return names


def _classes_of(root: Path, pairs: Sequence[tuple[str, int]], file: Path) -> list[str]:
    """Classes by the folders of the training list, where the file of categories is missing."""
    train = next((root / name for name in TRAIN_LISTS if (root / name).is_file()), None)
    if train is None:
        raise unfit(file, "has class numbers without names", f"put {CATEGORIES} beside it")
    named = {number: name.rpartition("/")[0] for name, number in (pairs if train == file else _pairs(train))}
    return [named.get(number, str(number)) for number in range(max(named) + 1)]


def _pairs(file: Path) -> list[tuple[str, int]]:
    """Lines of a name and a number."""
    try:
        split = [line.rsplit(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(name, int(number)) for name, number in split]
    except ValueError:
        raise unfit(file, "needs a name and a number on each line", "download this file again") from None


def _listing(
    root: Path, folders: Sequence[str], pairs: Sequence[tuple[str, int]], classes: list[str], file: Path, layout: str
) -> Listing:
    """The images that a list names, below the first of `folders` that has the first of them."""
    if not pairs:
        raise unfit(file, "lists no images", "get this file again")
    names = [name.lstrip("/") for name, _ in pairs]
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    places = [place for name in folders for place in (root / name, image_root(root) / name, root / "images" / name)]
    base = next((place for place in places if (place / names[0]).is_file()), None)
    if base is None:
        raise unfit(
            places[0] / names[0], f"is listed in {file.name} but does not exist", "unpack the images beside the list"
        )
    if int(labels.max()) >= len(classes):
        raise unfit(
            file, f"has class {int(labels.max())}, but there are {len(classes)} classes", "download this file again"
        )
    return Listing(Paths(base, names), labels, classes, layout)
