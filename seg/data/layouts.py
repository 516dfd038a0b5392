"""Find the files of data sets with label maps, and the meaning of the ids in the maps.

    images/{training,validation}/*.jpg   annotations/{training,validation}/*.png     ADEChallengeData2016
    JPEGImages/  SegmentationClassAug/ or SegmentationClass/  ImageSets/Segmentation/  VOC2012 (or VOCdevkit/VOC2012)
    VOCaug/dataset/ or benchmark_RELEASE/dataset/: cls/*.mat train.txt val.txt       SBD, beside or above VOC2012
    JPEGImages/  SegmentationClassContext/  ImageSets/SegmentationContext/           Pascal Context, in VOC2010
    img_dir/{train,val}/*  ann_dir/{train,val}/*_instance_color_RGB.png              iSAID, patches with ids
    leftImg8bit/{train,val}/CITY/*  gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png  Cityscapes
    {train,val}2017/*.jpg   annotations/{train,val}2017/*_labelTrainIds.png          COCO-Stuff 164k
    images/{train,val}/*   labels/{train,val}/*.png   classes.txt                     any other data set
    coco/{train,val}2017/*   coco/labels/{train,val}2017/*.png   coco/labels/classes.txt   handwritten

A label map has the name of its image, with another suffix. `classes.txt` has one class name per line, starting at id 0.
ADEChallengeData2016 is also read directly from its zip file in the directory, if it was not unpacked.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from mimbench.engine.data.datasets import Split, UnfitError, unfit
from mimbench.engine.data.folders import SUFFIXES, read_bytes

CLASSES_FILE = "classes.txt"
ADE_ZIP = "ADEChallengeData2016.zip"
SBD = tuple(
    f"{above}{name}/dataset" for above in ("", "VOCdevkit/") for name in ("VOCaug", "benchmark_RELEASE")
)  # below the directory
SBD_LISTS = ("train.txt", "val.txt")
MOST_CLASSES = 254  # 254 marks ids beyond the classes, 255 ignored pixels


@dataclass(frozen=True)
class Layout:
    """One way to keep images and label maps."""

    name: str
    images: dict[Split, str]  # folders below the root
    labels: dict[Split, tuple[str, ...]]  # folders; the first that exists is used
    label_suffix: str = ".png"  # appended to the image's name
    image_suffix: str = ""  # removed from the image's name before its suffix
    lists: dict[Split, tuple[str, ...]] | None = None  # text files with one name per line; the first that exists
    classes: str = CLASSES_FILE  # the file of names, or the key of a known list
    zero_is_ignored: bool = False  # id 0 is not a class, and id k is class k - 1 (ADE20K)
    root: str = ""  # folder below the directory
    sbd: tuple[str, ...] = ()  # folders that may hold SBD (cls/*.mat, train.txt, val.txt) for more training images
    marks: tuple[str, ...] = ()  # paths that identify it; by default the images and labels of one split


ADE = Layout(
    "ADE20K",
    {"train": "images/training", "val": "images/validation"},
    {"train": ("annotations/training",), "val": ("annotations/validation",)},
    classes="ade20k",
    zero_is_ignored=True,
)
CITYSCAPES = Layout(
    "Cityscapes",
    {"train": "leftImg8bit/train", "val": "leftImg8bit/val"},
    {"train": ("gtFine/train",), "val": ("gtFine/val",)},
    label_suffix="_gtFine_labelTrainIds.png",
    image_suffix="_leftImg8bit",
    classes="cityscapes",
)
STUFF = Layout(
    "COCO-Stuff 164k",
    {"train": "train2017", "val": "val2017"},
    {"train": ("annotations/train2017",), "val": ("annotations/val2017",)},
    label_suffix="_labelTrainIds.png",
    classes="coco_stuff",
)
ISAID = Layout(
    "iSAID",
    {"train": "img_dir/train", "val": "img_dir/val"},
    {"train": ("ann_dir/train",), "val": ("ann_dir/val",)},
    label_suffix="_instance_color_RGB.png",
    classes="isaid",
)
PAIR = Layout(
    "images and labels",
    {"train": "images/train", "val": "images/val"},
    {"train": ("labels/train",), "val": ("labels/val",)},
)
HANDWRITTEN = Layout(
    "handwritten",
    {"train": "coco/train2017", "val": "coco/val2017"},
    {"train": ("coco/labels/train2017",), "val": ("coco/labels/val2017",)},
    classes=f"coco/labels/{CLASSES_FILE}",
)


def _voc(root: str) -> Layout:
    masks = ("SegmentationClassAug", "SegmentationClass")
    lists = "ImageSets/Segmentation"
    return Layout(
        "VOC2012",
        {"train": "JPEGImages", "val": "JPEGImages"},
        {"train": masks, "val": masks},
        lists={
            "train": (f"{lists}/trainaug.txt", f"{lists}/train_aug.txt", f"{lists}/train.txt"),
            "val": (f"{lists}/val.txt",),
        },
        classes="voc",
        sbd=SBD,
        root=root,
        marks=("JPEGImages", lists),
    )


def _context(root: str) -> Layout:
    lists = "ImageSets/SegmentationContext"
    masks = ("SegmentationClassContext",)
    return Layout(
        "Pascal Context, 59 classes",
        {"train": "JPEGImages", "val": "JPEGImages"},
        {"train": masks, "val": masks},
        lists={"train": (f"{lists}/train.txt",), "val": (f"{lists}/val.txt",)},
        classes="pascal_context",
        zero_is_ignored=True,
        root=root,
        marks=("JPEGImages", *masks, lists),
    )


LAYOUTS = (
    ADE,
    CITYSCAPES,
    ISAID,
    *(_context(root) for root in ("", "VOC2010", "VOCdevkit/VOC2010")),
    *(_voc(root) for root in ("", "VOC2012", "VOCdevkit/VOC2012")),
    STUFF,
    PAIR,
    HANDWRITTEN,
)


class Store(Protocol):
    """The files in a directory or a zip file."""

    path: Path

    def names(self, folder: str) -> list[str]:
        """The files in `folder` and its folders, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    def read(self, name: str) -> bytes | bytearray:
        """What a file holds."""


class Directory:
    """The files in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, folder: str) -> list[str]:
        """The files in `folder` and its folders, sorted."""
        top = self.path / folder
        return sorted(file.relative_to(self.path).as_posix() for file in top.rglob("*") if file.is_file())

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.path / name).exists()

    def read(self, name: str) -> bytearray:
        """What a file holds."""
        return read_bytes(f"{self.path}/{name}")


class Zip:
    """The files in a zip file, below its single top folder; each process opens the zip file again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                found = [name for name in file.namelist() if not name.endswith("/")]
        except zipfile.BadZipFile:
            raise unfit(path, "is not a complete zip file", "download it again") from None
        self.top = f"{PurePosixPath(found[0]).parts[0]}/" if found else ""
        self._names = sorted(name.removeprefix(self.top) for name in found)
        self._folders = {str(parent) for name in self._names for parent in PurePosixPath(name).parents}

    def names(self, folder: str) -> list[str]:
        """The files in `folder` and its folders, sorted."""
        return [name for name in self._names if name.startswith(f"{folder}/")]

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return name in self._folders or name in self._names

    def read(self, name: str) -> bytes:
        """What a file holds."""
        return _opened(str(self.path)).read(self.top + name)

    def __reduce__(self) -> tuple[type[Zip], tuple[Path]]:
        return Zip, (self.path,)


@cache
def _opened(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def store_of(directory: Path) -> Store:
    """Return the source of the data set's files: `directory`, or ADE20K's zip file in it."""
    if directory.is_file() or (not (directory / "images").exists() and (directory / ADE_ZIP).is_file()):
        return Zip(directory if directory.is_file() else directory / ADE_ZIP)
    if not (directory / "images").exists() and (directory / "ADEChallengeData2016" / "annotations").is_dir():
        return Directory(directory / "ADEChallengeData2016")
    return Directory(directory)


def recognise(store: Store) -> Layout:
    """Recognise the layout of the data set.

    Raises:
        UnfitError: (a ValueError) if the layout is unknown, with a guess.
    """
    for layout in LAYOUTS:
        below = f"{layout.root}/" if layout.root else ""
        pairs = zip(layout.images.values(), (folders[0] for folders in layout.labels.values()), strict=True)
        ways = [layout.marks] if layout.marks else list(pairs)
        if any(all(store.has(below + name) for name in way) for way in ways):
            return layout
    raise unfit(store.path, *_unknown(store))


def _unknown(store: Store) -> tuple[str, str]:
    if store.has("index_ade20k.pkl") or store.has("images/ADE/training") or store.has("ADE20K_2021_17_01"):
        return (
            "is the full ADE20K (ADE20K_2021), with 3,000 classes coded as colours",
            "use ADEChallengeData2016.zip, the 150-class set that papers report",
        )
    if store.has("images/training"):
        return "has images/training but no annotations/training", "unpack ADEChallengeData2016.zip again"
    names = sorted({layout.name for layout in LAYOUTS})
    return (
        "has an unknown layout",
        f"known layouts: {', '.join(names)}; the simplest: images/{{train,val}}, labels/{{train,val}}, {CLASSES_FILE}",
    )


def pairs_of(store: Store, layout: Layout, split: Split) -> list[tuple[str, str]]:
    """Return the sorted names of a split's images, each with the name of its label map, which may not exist.

    Raises:
        UnfitError: (a ValueError) if the split has no images, or a list of names is missing.
    """
    below = f"{layout.root}/" if layout.root else ""
    folder = below + layout.images[split]
    labels = next(
        (below + name for name in layout.labels[split] if store.has(below + name)), below + layout.labels[split][0]
    )
    images = [name for name in store.names(folder) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    boundaries: dict[str, str] = {}  # label maps of SBD, by stem
    if layout.lists is not None:
        wanted = set(_listed(store, [below + name for name in layout.lists[split]]))
        if split == "train" and not store.has(below + layout.lists[split][0]):
            boundaries = _sbd(store, layout, wanted | set(_listed(store, [below + layout.lists["val"][0]])))
        wanted |= boundaries.keys()
        images = [name for name in images if PurePosixPath(name).stem in wanted]
    if not images:
        raise unfit(store.path / folder, "contains no images", "the split needs at least one")
    stems = [_stem(name, folder, layout) for name in images]
    maps = [boundaries.get(stem) or f"{labels}/{stem}{layout.label_suffix}" for stem in stems]
    return list(zip(images, maps, strict=True))


def _sbd(store: Store, layout: Layout, others: set[str]) -> dict[str, str]:
    """Return the label maps of SBD's images, by stem, without those of `others`; empty if SBD is not there.

    With VOC2012's own training images these are the 10,582 of `trainaug`.
    """
    place = next((folder for folder in layout.sbd if store.has(f"{folder}/cls")), None)
    if place is None:
        return {}
    stems = {stem for name in SBD_LISTS for stem in _listed(store, [f"{place}/{name}"])}
    return {stem: f"{place}/cls/{stem}.mat" for stem in stems - others}


def _stem(name: str, folder: str, layout: Layout) -> str:
    inside = PurePosixPath(name).relative_to(folder)
    return str(inside.with_suffix("")).removesuffix(layout.image_suffix)


def _listed(store: Store, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if store.has(name):
            yield from (line.split()[0] for line in bytes(store.read(name)).decode().splitlines() if line.strip())
            return
    raise unfit(store.path / names[0], "does not exist", "it must list the images of the split, one name per line")


def with_background(layout: Layout, path: Path) -> Layout:
    """Return Pascal Context's layout with id 0 as a class of its own: 60 classes instead of 59.

    Raises:
        ValueError: for another data set.
    """
    if layout.classes != "pascal_context":
        raise ValueError(
            f"background=true is Pascal Context's 60-class variant, and {path} is {layout.name}; use background=false"
        )
    return replace(layout, name="Pascal Context, 60 classes", classes="pascal_context_60", zero_is_ignored=False)


def classes_of(store: Store, layout: Layout) -> tuple[str, ...]:
    """Return the names of the classes, by id.

    Raises:
        UnfitError: (a ValueError) if the file of names is missing, empty, or has too many names.
    """
    from mimbench.seg.data.class_names import KNOWN

    if layout.classes in KNOWN:
        return KNOWN[layout.classes]
    file = store.path / layout.classes
    if not store.has(layout.classes):
        raise unfit(file, "does not exist", "write one class name per line, starting at id 0")
    lines = bytes(store.read(layout.classes)).decode(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise unfit(file, "names no classes", "write one class name per line, starting at id 0")
    if len(names) > MOST_CLASSES:
        raise unfit(file, f"names {len(names)} classes", f"8-bit label maps allow at most {MOST_CLASSES}")
    if len(names) == 1:
        raise unfit(file, "names only one class", "add the background as a class")
    return names


__all__ = ["LAYOUTS", "Layout", "Store", "UnfitError", "classes_of", "pairs_of", "recognise", "store_of"]
