"""The files of a data set of images that a run reads, in every layout of recognise.py, for its fingerprint.

    image_parts(root, ("train",))         what a pretraining reads
    image_parts(root, ("train", "val"))   what an evaluation reads

Class folders and flat folders count as folders of images; tars, packed images, CIFAR's files, lists and files of labels
count as files. No image is listed and no archive is opened. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mimbench.engine.data.content import Part
from mimbench.engine.data.datasets import image_root, is_pattern, shards_of
from mimbench.engine.data.layouts.val_labels import label_files
from mimbench.engine.data.splits import SPLITS, WORDS, Split

KAGGLE = "ILSVRC/Data/CLS-LOC"  # where Kaggle's archive of ImageNet has the images
CLASS_NAMES = "classnames.txt"  # of WebDataset
LISTS = ("train20[0-9][0-9].json", "val20[0-9][0-9].json", "places365_*.txt", "categories_places365.txt")
CIFAR = (
    "cifar-*/*", "cifar-*.tar.gz", "data_batch_*", "test_batch*", "batches.meta*", "train", "test", "meta",
    "train.bin", "test.bin", "fine_label_names.txt",
)  # fmt: skip
PACKED = ("*.tar", "index.safetensors", "shrink.json")


def split_root(root: Path) -> Path:
    """Return the directory that holds the splits of the data set at `root`."""
    kaggle = root / KAGGLE
    return kaggle if kaggle.is_dir() else image_root(root)


def image_parts(root: Path, splits: Sequence[Split]) -> list[Part]:
    """Return what a run reads of these splits of the data set at `root`, a directory or a pattern of shards.

    Raises:
        FileNotFoundError: if a shard of a pattern does not exist.
    """
    if is_pattern(root):
        return list(_shards(root, splits))
    if lists := _files(root, LISTS):
        return [Part("images", root), Part("lists", root, lists)]
    if rows := _files(root, CIFAR):
        return [Part("files", root, rows)]
    inner = split_root(root)
    beside = [name for name in _files(inner, ("*.tar",)) if any(_of(name, split) for split in splits)]
    if not beside and not any((inner / split).is_dir() for split in SPLITS):
        return [Part("images", inner), Part("archives", inner, _files(inner, PACKED))]  # both splits are all images
    parts = [Part("archives", inner, tuple(beside))] if beside else []
    for split in splits:
        parts.append(Part(split, inner / split))
        if packed := _files(inner / split, PACKED):
            parts.append(Part(f"{split} archives", inner / split, packed))
    return [*parts, *_labels(root, inner, splits)]


def _of(name: str, split: Split) -> bool:
    return WORDS[split].search(Path(name).stem.lower()) is not None


def _shards(pattern: Path, splits: Sequence[Split]) -> Iterator[Part]:
    tars = shards_of(pattern)
    told = [tar for tar in tars if any(_of(tar.name, split) for split in SPLITS)]
    mine = [tar for tar in tars if any(_of(tar.name, split) for split in splits)] if told else tars
    for folder in dict.fromkeys(tar.parent for tar in mine):
        yield Part("shards", folder, tuple(tar.name for tar in mine if tar.parent == folder))
        yield Part("classes", folder, (CLASS_NAMES,))


def _labels(root: Path, inner: Path, splits: Sequence[Split]) -> Iterator[Part]:
    """Yield the files that say what each image is."""
    above = [inner.parents[2], inner.parents[1]] if inner.match(KAGGLE) else []
    places = [*(inner / split for split in splits), inner, inner / "meta", root, *above]
    for folder in dict.fromkeys(places):
        names = [*(label_files(folder) if "val" in splits else ()), CLASS_NAMES]
        there = tuple(name for name in names if (folder / name).is_file())
        if there:
            yield Part("labels", folder, there)


def _files(folder: Path, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the files in `folder` that match, relative to it."""
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file() and file.name[0] != "."}
    return tuple(sorted(file.relative_to(folder).as_posix() for file in found))
