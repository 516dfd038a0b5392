"""The class of each image in a flat validation folder (or tar), from the file of labels beside it.

    LOC_val_solution.csv                              Kaggle: ILSVRC2012_val_00000001,n01751748 115 49 448 294
    val_annotations.txt                               Tiny-ImageNet: val_0.JPEG <tab> n03444034 <tab> a box
    val.txt                                           Caffe: ILSVRC2012_val_00000001.JPEG 65, or a wnid for the number
    imagenet_2012_validation_synset_labels.txt        a wnid a line, in the order of the images' numbers
    ILSVRC2012_validation_ground_truth.txt            a number a line, in the development kit's own numbering

Numbers in `val.txt` count classes from 0 in the order of their names. The development kit numbers them otherwise,
from 1, and its `meta.mat` alone says which wnid each number is: the kit, packed or unpacked, has to be there.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from mimbench.engine.data.datasets import unfit

NUMBER = re.compile(r"(\d+)\.\w+$")  # at the end of an image name
KIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KNOWN = ", ".join(("LOC_val_solution.csv", "val.txt", f"{KIT}.tar.gz"))

Labels = dict[str, str] | list[str]  # by an image's name without ending, or in the order of the images' numbers


def class_of_each(names: Sequence[str], directories: Sequence[Path], classes: Sequence[str] | None) -> list[str]:
    """The class of each image in `names`, from the first file of labels found in `directories`.

    `classes`: the training split's, which numbers in `val.txt` count in; None if there is none, and then classes that
    are numbered only are called by their numbers.

    Raises:
        UnfitError: (a ValueError) if there is no such file, or it does not say what every image is.
    """
    for directory in directories:
        for name, read in _READERS.items():
            if (file := directory / name).is_file():
                return _matched(names, read(file, classes), file)
    for directory in directories:
        if (found := _kit(directory)) is not None:
            return _matched(names, found[0], found[1])
    what = f"has {len(names)} images but no class folders and no file of labels"
    raise unfit(directories[0], what, f"put each class into its own folder, or put one of {KNOWN} beside the images")


def _matched(names: Sequence[str], labels: Labels, file: Path) -> list[str]:
    if isinstance(labels, dict):
        missing = next((name for name in names if Path(name).stem not in labels), None)
        if missing is not None:
            raise unfit(file, f"has no label for {missing}", "download the whole file again, or remove the image")
        return [labels[Path(name).stem] for name in names]
    numbers = [NUMBER.search(name) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if number is None or not 0 < int(number[1]) <= len(labels):
            raise unfit(file, f"has {len(labels)} lines, so no label for {name}", "use the labels of the same data set")
    return [labels[int(number[1]) - 1] for number in numbers if number]


# -------------------------------------------------------------------------------------------------------------- readers


def _kaggle(file: Path, _classes: Sequence[str] | None) -> Labels:
    rows = [line.split(",") for line in _lines(file)[1:]]
    return _by_name(file, [(row[0], row[1].split()[0]) for row in rows if len(row) == 2 and row[1].split()], rows)


def _tiny(file: Path, _classes: Sequence[str] | None) -> Labels:
    rows = [line.split("\t") for line in _lines(file)]
    return _by_name(file, [(row[0], row[1]) for row in rows if len(row) > 1], rows)


def _pairs(file: Path, classes: Sequence[str] | None) -> Labels:
    rows = [line.split() for line in _lines(file)]
    labels = _by_name(file, [(row[0], row[1]) for row in rows if len(row) == 2], rows)
    if not all(label.isdecimal() for label in labels.values()):
        return labels
    numbers = [int(label) for label in labels.values()]
    if classes is None:
        return labels
    if max(numbers) >= len(classes) or (min(numbers) == 1 and max(numbers) == len(classes)):
        what = f"has classes {min(numbers)} to {max(numbers)}, but there are {len(classes)}, counted from 0"
        raise unfit(
            file, what, "it may belong to another data set or use the development kit's numbers; use labels of this one"
        )
    return {name: classes[int(label)] for name, label in labels.items()}


def _by_name(file: Path, pairs: list[tuple[str, str]], rows: Sequence[object]) -> dict[str, str]:
    if not pairs or len(pairs) < len(rows):
        line = next((str(row) for row in rows if not pairs or len(row) < 2), "nothing")  # type: ignore[arg-type]
        raise unfit(file, f"holds {line[:60]}, not an image and its class per line", "download it again")
    return {Path(name).stem: label for name, label in pairs}


def _wnids(file: Path, _classes: Sequence[str] | None) -> Labels:
    return _lines(file)


def _ground_truth(file: Path, _classes: Sequence[str] | None) -> Labels:
    places = (file.parent, file.parent / "data", file.parent / KIT / "data")
    meta = next((place / "meta.mat" for place in places if (place / "meta.mat").is_file()), None)
    if meta is None:
        kit = _packed_kit(file.parent)
        if kit is None:
            raise unfit(
                file,
                "uses the development kit's class numbers (ILSVRC2012_ID), and no meta.mat gives their wnids",
                f"put {KIT}.tar.gz, or its data/meta.mat, beside it",
            )
        return _to_wnids(_lines(file), io.BytesIO(kit[1]), file)
    with meta.open("rb") as handle:
        return _to_wnids(_lines(file), handle, file)


_READERS: dict[str, Callable[[Path, Sequence[str] | None], Labels]] = {
    "LOC_val_solution.csv": _kaggle,
    "val_annotations.txt": _tiny,
    "val.txt": _pairs,
    "imagenet_2012_validation_synset_labels.txt": _wnids,
    GROUND_TRUTH: _ground_truth,
}


def label_files(directory: Path) -> list[str]:
    """Return the names, relative to `directory`, of the files that `class_of_each` would read there."""
    kit = [f"{folder}{name}" for folder in ("", "data/", f"{KIT}/data/") for name in (GROUND_TRUTH, "meta.mat")]
    names = dict.fromkeys([*_READERS, *kit, f"{KIT}.tar.gz"])
    return [name for name in names if (directory / name).is_file()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError:
        raise unfit(file, "is not a text file", "get it again") from None


# ---------------------------------------------------------------------------------------------------------- devkit


def _kit(directory: Path) -> tuple[Labels, Path] | None:
    """The labels of a development kit in `directory`, and the file they are from."""
    unpacked = directory / KIT / "data" / GROUND_TRUTH
    if unpacked.is_file():
        return _ground_truth(unpacked, None), unpacked
    if (packed := _packed_kit(directory)) is None:
        return None
    file = directory / f"{KIT}.tar.gz"
    return _to_wnids(packed[0].decode("ascii", "replace").splitlines(), io.BytesIO(packed[1]), file), file


def _packed_kit(directory: Path) -> tuple[bytes, bytes] | None:
    """Ground truth and `meta.mat` of the packed kit; None if it is not there."""
    file = directory / f"{KIT}.tar.gz"
    if not file.is_file():
        return None
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(file) as tar:
            for entry in tar:
                base = entry.name.rpartition("/")[2]
                if base in (GROUND_TRUTH, "meta.mat") and (handle := tar.extractfile(entry)) is not None:
                    found[base] = handle.read()
        return found[GROUND_TRUTH], found["meta.mat"]
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise unfit(file, f"is not the published development kit ({error})", "download this file again") from None


def _to_wnids(lines: Sequence[str], meta: IO[bytes], file: Path) -> list[str]:
    wnids = _wnid_of_each_id(meta, file)
    for line in lines:
        if line.strip() not in wnids:
            raise unfit(
                file, f"holds {line[:20]!r}, which is not an ILSVRC2012_ID of its meta.mat", "download the kit again"
            )
    return [wnids[line.strip()] for line in lines]


def _wnid_of_each_id(meta: IO[bytes], file: Path) -> dict[str, str]:
    """ILSVRC2012_ID -> wnid of the classes that are leaves, from the kit's `meta.mat`."""
    from scipy.io import loadmat

    try:
        synsets: Any = loadmat(meta, squeeze_me=True)["synsets"]
        leaves = [one for one in synsets.reshape(-1) if int(one["num_children"]) == 0]
        return {str(int(one["ILSVRC2012_ID"])): str(one["WNID"]) for one in leaves}
    except Exception as error:  # a damaged file can raise nearly anything
        raise unfit(file, f"has an unreadable meta.mat ({error})", "download the development kit again") from None
