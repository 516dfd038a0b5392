"""Open a split of a data set with label maps: `open_split(directory, "train")`.

split.image(i)     uint8 (H, W, 3), blue first
split.labels(i)    uint8 (H, W), classes from 0, 255 ignored
split.pair(i)      both, with the same size
split.raw_pair(i, ignore)    the same with the ids in the file, checked alike
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mimbench.engine.data.datasets import Split, UnfitError, unfit
from mimbench.engine.data.shared_images import COPY, HONEST, validation_fact
from mimbench.engine.run.bar import track
from mimbench.engine.run.process import rank_and_world
from mimbench.seg.data.augment import IGNORED
from mimbench.seg.data.class_names import KNOWN
from mimbench.seg.data.layouts import Layout, Store, classes_of, pairs_of, recognise, store_of, with_background
from mimbench.seg.data.pixels import Image, Labels, decode_image, decode_labels, decode_mat, exif_turns, look_up

log = logging.getLogger(__name__)

BEYOND = 254  # marks an id that is not a class


@dataclass(frozen=True)
class LabelledSplit:
    """The images of a split, sorted by name, with their label maps."""

    store: Store
    layout: Layout
    split: Split
    classes: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]  # names of image and label map

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the path of an image below the data set's directory."""
        return self.pairs[index][0]

    def image_name(self, index: int) -> str:
        """Return the file of an image."""
        return self._path(self.pairs[index][0])

    def prediction_name(self, index: int) -> str:
        """Return the path of an image's prediction below `predictions/`: its label map's below the folder of maps."""
        name, root = PurePosixPath(self.pairs[index][1]), PurePosixPath(self.layout.root)
        folders = [root / folder for folder in self.layout.labels[self.split]]
        return str(next((name.relative_to(one) for one in folders if name.is_relative_to(one)), name.name))

    def image(self, index: int) -> Image:
        """Read an image, rotated according to its EXIF data.

        Raises:
            UnfitError: (a ValueError) naming the file, if it cannot be read.
        """
        name = self.pairs[index][0]
        return decode_image(self._read(name), self._path(name))

    def raw_labels(self, index: int) -> Labels:
        """Read a label map with the ids in the file.

        Raises:
            UnfitError: (a ValueError) naming the file, if it is missing, damaged or not a label map.
        """
        name = self.pairs[index][1]
        decode = decode_mat if name.endswith(".mat") else decode_labels
        return decode(self._read(name), self._path(name))

    def labels(self, index: int) -> Labels:
        """Read a label map with classes starting at 0; ignored pixels are 255.

        Raises:
            UnfitError: (a ValueError) as `raw_labels`; also for an id that is not a class.
        """
        raw = self.raw_labels(index)
        mapped = look_up(raw, self.table())
        self._require_classes(index, raw, mapped)
        return mapped

    def pair(self, index: int) -> tuple[Image, Labels]:
        """Read an image and its label map.

        Raises:
            UnfitError: (a ValueError) as `image` and `labels`; also if they differ in size.
        """
        image, labels = self.image(index), self.labels(index)
        self._require_size(index, image, labels)
        return image, labels

    def raw_pair(self, index: int, ignore: Sequence[int]) -> tuple[Image, Labels]:
        """Read an image and its label map with the ids in the file, which may include those in `ignore`.

        Raises:
            UnfitError: (a ValueError) as `pair`.
        """
        image, raw = self.image(index), self.raw_labels(index)
        table = self.table()
        table[list(ignore)] = IGNORED
        self._require_classes(index, raw, look_up(raw, table))
        self._require_size(index, image, raw)
        return image, raw

    def _require_classes(self, index: int, raw: Labels, mapped: Labels) -> None:
        beyond = mapped == BEYOND
        if beyond.any():
            raise unfit(Path(self._path(self.pairs[index][1])), *beyond_reason(self, np.unique(raw[beyond]).tolist()))

    def _require_size(self, index: int, image: Image, labels: Labels) -> None:
        if image.shape[:2] != labels.shape:
            raise unfit(Path(self._path(self.pairs[index][1])), *self._size_reason(index, image, labels))

    def _size_reason(self, index: int, image: Image, labels: Labels) -> tuple[str, str]:
        """Return the problem with a label map whose size differs from its image, and what to do."""
        (h, w), (height, width) = labels.shape, image.shape[:2]
        what = f"has {w} x {h} pixels, but its image has {width} x {height}"
        if (h, w) == (width, height) and exif_turns(self._read(self.pairs[index][0])):
            return what, "EXIF rotates the image but not the labels; save the image upright, without EXIF orientation"
        return what, "make the label map from this image, or resize it by nearest neighbour"

    def table(self) -> NDArray[np.uint8]:
        """Return the class of each id in a file: (256,)."""
        return label_table(len(self.classes), self.layout.zero_is_ignored)

    def _read(self, name: str) -> bytes | bytearray:
        try:
            return self.store.read(name)
        except (FileNotFoundError, KeyError):
            raise unfit(Path(self._path(name)), "does not exist", "every image needs its label map") from None

    def _path(self, name: str) -> str:
        return f"{self.store.path}/{name}"


def label_table(classes: int, zero_is_ignored: bool) -> NDArray[np.uint8]:
    """Return the class of each id, 255 if ignored, `BEYOND` if it is not a class: (256,)."""
    first = int(zero_is_ignored)
    table = np.full(256, BEYOND, dtype=np.uint8)
    table[first : first + classes] = np.arange(classes)
    table[IGNORED] = IGNORED
    if zero_is_ignored:
        table[0] = IGNORED
    return table


def beyond_reason(split: LabelledSplit, wrong: Sequence[int]) -> tuple[str, str]:
    """Return the problem with the ids `wrong`, which are beyond the classes, and what to do."""
    first = int(split.layout.zero_is_ignored)
    what = f"has id {wrong[0]}; the {len(split.classes)} classes are {first} to {first + len(split.classes) - 1}"
    if split.layout.name == "Cityscapes":
        return what, "these are labelIds; make labelTrainIds with cityscapesScripts' createTrainIdLabelImgs"
    if not first and list(wrong) == [len(split.classes)]:
        return what, "ids must start at 0; subtract 1, and write 255 for ignored pixels"
    if split.layout.classes in KNOWN:
        ignored = "0 or 255" if split.layout.zero_is_ignored else "255"
        return what, f"write {ignored} for pixels of no class; {split.layout.name} has no other ids"
    return what, f"write 255 for ignored pixels, and name every class in {split.layout.classes}"


def shared_images(val: LabelledSplit) -> str:
    """Return which validation images are training images, for `result.json`; a warning is logged if there are any."""
    try:
        train = [name for name, _ in pairs_of(val.store, val.layout, "train")]
    except UnfitError:  # there is no training split, as for an evaluation alone
        return HONEST

    def same(other: int, place: int) -> bool:
        return bytes(val.store.read(train[other])) == bytes(val.store.read(val.pairs[place][0]))

    named = [[name.rpartition("/")[2] for name in names] for names in (train, [pair[0] for pair in val.pairs])]
    text = validation_fact(named[0], named[1], same)
    if text != HONEST and rank_and_world()[0] == 0:
        what = "all" if text == COPY else text.removesuffix(" are training images")
        log.warning("%s: %s validation images are training images, so mIoU means little", val.store.path, what)
    return text


def open_split(directory: str | Path, split: Split, *, background: bool = False) -> LabelledSplit:
    """Open a split of the data set in `directory`; no image is opened.

    Args:
        directory: of the data set, or ADE20K's zip file.
        split: "train" or "val".
        background: id 0 is a class of its own; only for Pascal Context, which has a variant with 60 classes.

    Raises:
        UnfitError: (a ValueError) if its layout is unknown, or it lacks images, label maps or class names.
        ValueError: if it has no variant with background.
    """
    store = store_of(Path(directory))
    layout = recognise(store)
    if background:
        layout = with_background(layout, store.path)
    classes = classes_of(store, layout)
    return LabelledSplit(store, layout, split, classes, tuple(pairs_of(store, layout, split)))


def open_labelled(directory: str | Path, split: Split, *, background: bool = False) -> LabelledSplit:
    """Open a split as `open_split` and refuse one in which every pixel is ignored.

    Reads label maps up to the first with a labelled pixel. Without this check, a run would train to its end before its
    metric fails.

    Raises:
        UnfitError: (a ValueError) as `open_split` and `LabelledSplit.labels`; also if no map has a labelled pixel.
    """
    opened = open_split(directory, split, background=background)
    if not any((opened.labels(index) != IGNORED).any() for index in range(len(opened))):
        folder = opened.store.path / Path(opened.pairs[0][1]).parent
        ignored = "0 and 255" if opened.layout.zero_is_ignored else "255"
        raise unfit(folder, "has no labelled pixel in any map", f"use ids other than {ignored} for classes")
    return opened


def require_usable(split: LabelledSplit, fits: Callable[[tuple[int, int]], None]) -> None:
    """Read all images and label maps of a split and refuse it if one of them cannot be used.

    Without this check, a fault in the validation split would show only after the training.

    Args:
        split: the split to read.
        fits: raises a ValueError if the model cannot take an image of this height and width.

    Raises:
        UnfitError: (a ValueError) as `LabelledSplit.pair`.
        ValueError: that of `fits`.
    """
    for index in track(range(len(split)), f"checking {split.split} images", len(split)):
        fits(split.pair(index)[1].shape)
