"""ImageNet's robustness sets, for classifiers fine-tuned on ImageNet-1k.

    test = robustness("imagenet-a", "/data/imagenet-a")            # a path or a data set's name
    percent = {}
    for part in test.parts:                                        # one part, or 75 of them (ImageNet-C)
        right = [part.right(logits_BC, places_B), ...]             # for batches of part.folder, in any order
        percent[part.name] = part.percent(torch.cat(right))
    test.metrics(percent)                                          # {"imagenet_a_top1": 35.9}

`part.folder` is an `ImageFolder`, read like the validation split (`CentreCrops`); its labels are indices into the
classifier's outputs. `places_B` are the indices of the images the logits belong to. Metrics and the published file
layouts:

    imagenet-a       PATH/<wnid>/...                      top-1 among the 200 classes of the set (logits masked)
    imagenet-r       PATH/<wnid>/...                      the same, among its own 200 classes
    imagenet-sketch  PATH/<wnid>/... or PATH/sketch/      top-1 among all classes
    imagenet-v2      PATH/<0..999>/...                    top-1; each of its three samplings found below PATH separately
    imagenet-c       PATH/<corruption>/<1..5>/<wnid>/...  mean top-1, and mCE: errors relative to AlexNet's
    imagenet-real    PATH, the validation split           top-1 with ReaL's labels: right if in the image's set;
                                                          images without a label do not count

Nothing is trained on these sets. Folders are matched to classes by wnid, or by number (V2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mimbench.cls.data.imagenet import WNID, imagenet_a_wnids, imagenet_r_wnids, real_labels, val_number, wnids
from mimbench.engine.data.datasets import locate, unfit
from mimbench.engine.data.images import ImageFolder

Kind = Literal["imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-c", "imagenet-real"]
KINDS: tuple[Kind, ...] = get_args(Kind)
V2_SAMPLINGS = ("matched-frequency", "threshold0.7", "top-images", "topimages")
SEVERITIES = ("1", "2", "3", "4", "5")
ALEXNET_ERROR = {  # mean error over severities, Hendrycks and Dietterich 2019 (hendrycks/robustness)
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
EXTRA = frozenset({"speckle_noise", "gaussian_blur", "spatter", "saturate"})  # in ImageNet-C, not in the means

LEFT_OUT = -1  # marks an image without a label

# B image of a batch, N image of a part, C class of the classifier


@dataclass(frozen=True)
class Part:
    """Images that are evaluated together.

    Attributes:
        name: unique name of the part; empty if it is the only one.
        folder: the images; labels are indices into the classifier's outputs.
        mask: bool (C,), the classes that may be predicted; None for all.
        sets: bool (N, C), the correct classes of each image; None: only `folder.labels`.
    """

    name: str
    folder: ImageFolder
    mask: Tensor | None = None
    sets: Tensor | None = None

    def right(self, logits_BC: Tensor, places_B: Tensor) -> Tensor:
        """Return int8 (B,) on the CPU for images `places_B`: 1 if top-1 is correct, 0 if not, -1 without a label.

        Raises:
            ValueError: if the logits do not have the classes that the set was opened with.
        """
        classes = len(self.folder.classes)
        if logits_BC.shape[1] != classes:
            raise ValueError(
                f"logits have {logits_BC.shape[1]} classes, but {self.folder.root} was opened for {classes}"
            )
        logits_BC, places_B = logits_BC.float().cpu(), places_B.cpu()
        if self.mask is not None:
            logits_BC = logits_BC.masked_fill(~self.mask, -torch.inf)
        guess_B = logits_BC.argmax(1)
        if self.sets is None:
            return (guess_B == self.folder.labels[places_B]).to(torch.int8)
        allowed_BC = self.sets[places_B]
        right_B = allowed_BC.gather(1, guess_B[:, None])[:, 0].to(torch.int8)
        return right_B.masked_fill(~allowed_BC.any(1), LEFT_OUT)

    def percent(self, right_N: Tensor) -> float:
        """Return top-1 in percent from the values of `right` for all images.

        Raises:
            ValueError: if no image has a label.
        """
        counted = right_N[right_N != LEFT_OUT]
        if not len(counted):
            raise ValueError(
                f"{self.folder.root}: none of the {len(right_N)} images has a label; name a set with labelled images"
            )
        return 100 * counted.sum(dtype=torch.int64).item() / len(counted)


@dataclass(frozen=True)
class Robustness:
    """An opened robustness set."""

    kind: Kind
    parts: tuple[Part, ...]

    def metrics(self, percent: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers that papers report, from the top-1 in percent of each part by name.

        `imagenet_a_top1` and so on: the mean over parts. V2 adds one metric per sampling. C adds one per corruption
        (mean over severities), and `imagenet_c_mce` in percent if all 15 corruptions exist at all 5 severities.
        """
        if self.kind == "imagenet-c":
            return _corruption_metrics(percent)
        name = self.kind.replace("-", "_")
        each = {f"{name}_{_key(part)}_top1": value for part, value in percent.items() if part}
        return {f"{name}_top1": sum(percent.values()) / len(percent), **each}


def robustness(kind: Kind, path: str | Path, classes: Sequence[str] | None = None) -> Robustness:
    """Open the set at `path` (a directory or a data set's name) for a classifier.

    Args:
        kind: the robustness set, one of `KINDS`.
        path: its directory or data set name.
        classes: wnids of the classifier's outputs, in order; those of ImageNet-1k if None, or if they are the 1,000
            numbers (WebDataset stores no class names).

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: (UnfitError) if it is not such a set, or has a class that the classifier does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a robustness set; choose from {', '.join(KINDS)}")
    unnamed = classes is not None and list(classes) == [str(number) for number in range(len(wnids()))]
    root, order = locate(path), tuple(wnids() if classes is None or unnamed else classes)
    if kind == "imagenet-a":
        return Robustness(kind, (_masked(root, order, imagenet_a_wnids()),))
    if kind == "imagenet-r":
        return Robustness(kind, (_masked(root, order, imagenet_r_wnids()),))
    if kind == "imagenet-sketch":
        return Robustness(kind, (Part("", _by_wnid(root, order)),))
    if kind == "imagenet-v2":
        return Robustness(kind, _v2(root, order))
    if kind == "imagenet-c":
        return Robustness(kind, _corruptions(root, order))
    return Robustness(kind, (_real(root, order),))


def _masked(root: Path, order: Sequence[str], competing: Sequence[str]) -> Part:
    folder = _by_wnid(root, order, among=frozenset(competing))
    chosen = frozenset(competing)
    return Part("", folder, mask=torch.tensor([wnid in chosen for wnid in order]))


def _by_wnid(root: Path, order: Sequence[str], among: frozenset[str] | None = None) -> ImageFolder:
    """Return the images of folders named by wnid, labelled by the wnid's index in `order`."""
    directory = _holding(root, lambda name: bool(WNID.fullmatch(name)))
    if directory is None:
        raise unfit(root, "has no folders named by wnid (n01440764)", "name the folder that holds them")
    folder = ImageFolder(directory, "train")
    allowed = frozenset(order) if among is None else frozenset(order) & among
    if strange := [name for name in folder.classes if name not in allowed]:
        whose = "the classifier's classes" if among is None else "the classes of this set"
        raise unfit(directory / strange[0], f"is not among {whose}", "check that this directory is the set you named")
    return _renumbered(folder, [order.index(name) for name in folder.classes], order)


def _holding(root: Path, fits: Callable[[str], bool]) -> Path | None:
    """Return `root` or the single directory in it whose subdirectories' names satisfy `fits`."""
    inner = sorted(place for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
    if any(fits(place.name) for place in inner):
        return root
    found = [place for place in inner if any(fits(below.name) for below in place.iterdir() if below.is_dir())]
    return found[0] if len(found) == 1 else None


def _renumbered(folder: ImageFolder, numbers: Sequence[int], order: Sequence[str]) -> ImageFolder:
    folder.labels = torch.tensor(numbers, dtype=torch.int64)[folder.labels]
    folder.classes = list(order)
    return folder


# --------------------------------------------------------------------------------------------------------- V2, C, ReaL


def _v2(root: Path, order: Sequence[str]) -> tuple[Part, ...]:
    inner = sorted(place for place in root.iterdir() if place.is_dir())
    samplings = [place for place in inner if any(name in place.name for name in V2_SAMPLINGS)]
    if not samplings:
        return (Part("", _numbered(root, order)),)
    return tuple(Part(place.name if len(samplings) > 1 else "", _numbered(place, order)) for place in samplings)


def _numbered(root: Path, order: Sequence[str]) -> ImageFolder:
    """Return the images of folders named 0 to 999, ImageNet's class numbers (sorted as text: 0, 1, 10, 100)."""
    directory = _holding(root, str.isdecimal)
    if directory is None:
        return _by_wnid(root, order)
    folder = ImageFolder(directory, "train")
    for name in folder.classes:
        if not name.isdecimal() or int(name) >= len(wnids()):
            raise unfit(
                directory / name, f"is not a number below {len(wnids())}", "ImageNet-V2's folders are named 0 to 999"
            )
        if (wnid := wnids()[int(name)]) not in order:
            raise unfit(directory / name, f"is {wnid}, which is not a class of the classifier", "remove the folder")
    return _renumbered(folder, [order.index(wnids()[int(name)]) for name in folder.classes], order)


def _corruptions(root: Path, order: Sequence[str]) -> tuple[Part, ...]:
    """Return a part for each corruption and severity; corruptions may be in group folders (noise/, blur/)."""
    inner = sorted(place for place in root.iterdir() if place.is_dir())
    below = [deeper for place in inner if not _graded(place) for deeper in sorted(place.iterdir()) if deeper.is_dir()]
    found = [place for place in [*inner, *below] if _graded(place)]
    if not found:
        raise unfit(root, "has no folders of corruptions", "ImageNet-C's layout is <corruption>/<1..5>/<wnid>/")
    if strange := [place for place in found if place.name not in ALEXNET_ERROR and place.name not in EXTRA]:
        raise unfit(strange[0], "is not a corruption of ImageNet-C", f"its corruptions are {', '.join(ALEXNET_ERROR)}")
    return tuple(
        Part(f"{place.name}/{severity}", _by_wnid(place / severity, order))
        for place in sorted(found, key=lambda place: place.name)
        for severity in SEVERITIES
        if (place / severity).is_dir()
    )


def _graded(directory: Path) -> bool:
    return any((directory / severity).is_dir() for severity in SEVERITIES)


def _corruption_metrics(percent: Mapping[str, float]) -> dict[str, float]:
    by_corruption: dict[str, list[float]] = {}
    for name, value in percent.items():
        by_corruption.setdefault(name.partition("/")[0], []).append(value)
    means = {name: sum(values) / len(values) for name, values in by_corruption.items()}
    counted = {name: value for name, value in means.items() if name in ALEXNET_ERROR}
    metrics = {"imagenet_c_top1": sum(counted.values()) / len(counted)} if counted else {}
    if len(counted) == len(ALEXNET_ERROR) and all(len(by_corruption[name]) == len(SEVERITIES) for name in counted):
        errors = [(100 - value) / ALEXNET_ERROR[name] for name, value in counted.items()]
        metrics["imagenet_c_mce"] = sum(errors) / len(errors)
    return {**metrics, **{f"imagenet_c_{name}_top1": value for name, value in means.items()}}


def _real(root: Path, order: Sequence[str]) -> Part:
    """Return the validation split with ReaL's label sets, from `real.json` beside it or from timm."""
    folder = ImageFolder(root, "val")
    numbers = [val_number(folder.paths.text(place)) for place in range(len(folder))]
    if None in numbers:
        odd = folder.paths[numbers.index(None)]
        raise unfit(
            odd,
            "is not named like ImageNet's validation images",
            "ReaL's labels need names like ILSVRC2012_val_00000001",
        )
    if set(folder.classes) <= set(order):
        _renumbered(folder, [order.index(name) for name in folder.classes], order)
    elif len(folder.classes) != len(order):
        raise unfit(
            folder.paths.root, "has classes that the classifier does not have", "name the folders by ImageNet's wnids"
        )
    labels = _real_file(root) if (root / "real.json").is_file() else real_labels()
    places = {wnid: place for place, wnid in enumerate(order)}
    column = [places.get(wnid) for wnid in wnids()]
    sets = torch.zeros(len(folder), len(order), dtype=torch.bool)
    for place, number in enumerate(numbers):
        for label in labels[number or 0]:
            if (known := column[label]) is not None:
                sets[place, known] = True
    return Part("", folder, sets=sets)


def _real_file(root: Path) -> Sequence[Sequence[int]]:
    file = root / "real.json"
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
        if len(labels) != len(real_labels()) or not all(0 <= label < 1000 for one in labels for label in one):
            raise ValueError("expected 50,000 lists of numbers from 0 to 999")
    except (OSError, ValueError, TypeError) as error:
        raise unfit(file, f"cannot be read ({error})", "remove it: timm includes the labels") from None
    return labels  # type: ignore[no-any-return]


def _key(part: str) -> str:
    return part.replace("-", "_").replace(".", "")
