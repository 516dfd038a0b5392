"""WebDataset shards, read at random instead of in sequence: `<key>.jpg` with `<key>.cls` or `<key>.json` in tars.

    ROOT/train/00000.tar ...  ROOT/val/...           one folder for each split
    ROOT/imagenet-train-000000.tar ...               splits told by a word in the names: train; val, validation
    data='/data/in-{train,val}-{000000..000012}.tar' the same, named one by one (engine/data/datasets.py)

A label is the whole number in `.cls`, or `label`, `cls`, `class` or `class_id` in `.json`. Classes are named by
`classnames.txt` beside the shards, by the wnids that begin the keys (n01440764_10026) where each class has its own, or
else by their numbers. Compressed shards cannot be read at random.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mimbench.engine.data.datasets import Split, is_pattern, shards_of, unfit
from mimbench.engine.data.folders import is_image
from mimbench.engine.data.layouts.listing import Listing
from mimbench.engine.data.layouts.parts import CLASS_NAMES
from mimbench.engine.data.layouts.tars import TarFiles, tar_files
from mimbench.engine.data.shards import packed
from mimbench.engine.data.splits import WORDS

WNID_KEY = re.compile(r"(?:.*/)?(n\d{8})_")
LOOKED_AT = 8  # files of a tar read to recognise a shard
TRIED = 3  # tars read: the first may be damaged, and that must be reported


def shards(root: Path, split: Split) -> list[Path]:
    """The shards of `split` at `root`, a directory or a pattern; none if it has no shards."""
    if is_pattern(root):
        return [tar for tar in shards_of(root) if WORDS[split].search(tar.stem.lower())]
    folder = root / split
    if folder.is_dir():
        tars = sorted(folder.glob("[!.]*.tar"))
        return tars if tars and not packed(folder) and any(map(_are_samples, tars[:TRIED])) else []
    tars = [tar for tar in sorted(root.glob("[!.]*.tar")) if WORDS[split].search(tar.stem.lower())]
    return tars if any(map(_are_samples, tars[:TRIED])) else []


def _are_samples(tar: Path) -> bool:
    """Whether the first files of `tar` are an image and its label."""
    try:
        with tarfile.open(tar, mode="r:") as opened:
            files = [entry for entry in itertools.islice(opened, LOOKED_AT) if entry.isfile()]
    except (tarfile.TarError, OSError):
        return False
    names = [entry.name.rpartition("/")[2] for entry in files]
    keys = {name.partition(".")[0] for name in names if name.endswith((".cls", ".json"))}
    return any(is_image(name) and name.partition(".")[0] in keys for name in names)


def open_pattern(pattern: Path, split: Split) -> Listing:
    """The split of the shards that `pattern` names.

    Raises:
        FileNotFoundError: if a shard is not there, or none is of this split.
        UnfitError: (a ValueError) if a shard is damaged or a sample has no label.
    """
    mine, everything = shards(pattern, split), shards_of(pattern)
    told = [tar for either in WORDS for tar in shards(pattern, either)]
    if not told:
        return open_listing(everything, everything[0].parent, everything, splitless=True)
    if not mine:
        raise FileNotFoundError(f"no shard name in {pattern} contains {split!r}; add the shards of this split")
    return open_listing(mine, mine[0].parent, shards(pattern, "train"))


def open_listing(tars: Sequence[Path], root: Path, train: Sequence[Path], splitless: bool = False) -> Listing:
    """The samples of `tars` in order; `train`: the shards whose labels give the number of classes.

    Raises:
        UnfitError: (a ValueError) if a shard is damaged, a sample has no label, or one that the training split lacks.
    """
    files = tar_files(tars, "samples")
    trained = files if list(tars) == list(train) or not train else tar_files(train, "samples")
    classes = _class_names(trained, root)
    labels = np.array(files.label)
    if labels.min() < 0 or labels.max() >= len(classes):
        place = int(((labels < 0) | (labels >= len(classes))).argmax())
        raise unfit(
            files[place], f"has label {labels[place]}, but classes are 0 to {len(classes) - 1}", "correct the label"
        )
    return Listing(files, torch.from_numpy(labels), classes, "WebDataset shards", splitless)


def _class_names(files: TarFiles, root: Path) -> list[str]:
    count = int(files.label.max()) + 1
    for directory in (root, files.tars[0].parent, files.tars[0].parent.parent):
        if (file := directory / CLASS_NAMES).is_file():
            names = file.read_text(encoding="utf-8").rstrip().splitlines()
            if len(names) < count:
                raise unfit(file, f"names {len(names)} classes, but there are {count}", "complete or remove it")
            return names
    return _wnids_of_keys(files, count) or [str(number) for number in range(count)]


def _wnids_of_keys(files: TarFiles, count: int) -> list[str] | None:
    """The wnid prefix of each class's keys; None unless each class has exactly one."""
    wnids: dict[int, str] = {}
    for place in range(len(files)):
        found, label = WNID_KEY.match(files.name(place)), int(files.label[place])
        if found is None or wnids.setdefault(label, found[1]) != found[1]:
            return None
    return [wnids[label] for label in range(count)] if len(wnids) == len(set(wnids.values())) == count else None
