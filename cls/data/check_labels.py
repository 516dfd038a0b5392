"""Check whether labels are correct: a wrong class order or two swapped classes lower accuracy silently.

Three sources are independent of the data set's labels: the wnids of ImageNet-1k (timm), the wnid at the start of each
training image's name (n01440764_10026.JPEG), and ReaL's labels of the validation images, by their numbers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.cls.data.imagenet import IMAGES, WNID, indices, real_labels, val_number, wnids
from mimbench.engine.data.datasets import Finding
from mimbench.engine.data.layouts.listing import Listing

FEW = 20  # with fewer validation images, one class may be the majority by chance
AGREEING = 0.8  # minimum share of validation labels that agree with ReaL; about 0.9 of the published labels do
NAMED = 3  # classes or files in a message
MOST = 10  # findings of one kind that are listed; the rest are counted


@dataclass(frozen=True)
class Known:
    """The published contents of a data set."""

    title: str
    classes: int
    train: int
    val: int
    names: tuple[str, ...] = ()  # names of the classes in order, if known and few


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KNOWN = {
    "imagenet": Known("ImageNet-1k", 1000, IMAGES["train"], IMAGES["val"]),
    "tiny-imagenet": Known("Tiny-ImageNet", 200, 100_000, 10_000),
    "cifar10": Known("CIFAR-10", 10, 50_000, 10_000, CIFAR10),
    "cifar100": Known("CIFAR-100", 100, 50_000, 10_000),
    "inaturalist2019": Known("iNaturalist 2019", 1010, 265_213, 3_030),
    "places365": Known("Places365-Standard", 365, 1_803_460, 36_500),
}


def class_findings(kind: str, classes: Sequence[str], where: Path) -> Iterator[Finding]:
    """Yield findings about the classes of a data set and their order, judged by the names only."""
    known = KNOWN.get(kind)
    if known is not None and len(classes) != known.classes:
        remedy = "its numbers cannot be compared; add the missing classes, or check it as `images`"
        what = f"has {len(classes)} classes, but {known.title} has {known.classes}"
        missing = sorted(set(wnids()) - set(classes)) if kind == "imagenet" else []
        named = f" ({', '.join(missing)} missing)" if 0 < len(missing) <= NAMED else ""
        yield Finding("error", str(where), what + named, remedy)
    if known is not None and known.names and tuple(classes) != known.names:
        what = f"orders its classes {', '.join(classes[:NAMED])}, ..., but {known.title} orders them "
        yield Finding("error", str(where), what + f"{', '.join(known.names[:NAMED])}, ...", "put them in this order")
    if kind == "imagenet":
        yield from _wnid_findings(classes, where)
    elif len(classes) > 10 and all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        yield Finding(
            "warning",
            str(where),
            f"class names are numbers, which are sorted as text: {', '.join(classes[:NAMED])}",
            f"pad them to equal length ({int(classes[0]):04}) if the numbers should be the labels",
        )


def _wnid_findings(classes: Sequence[str], where: Path) -> Iterator[Finding]:
    """Yield findings about classes that differ from ImageNet-1k's list."""
    if list(classes) == [str(number) for number in range(len(classes))]:
        what = "classes have no names, so their order cannot be checked by name"
        yield Finding(
            "note", str(where), what, "ReaL's labels check it if the validation images have their published names"
        )
        return
    order = wnids()
    if strange := [name for name in classes if name not in set(order)]:
        numbers = all(name.isdecimal() for name in strange)
        what = f"{len(strange)} classes are not in ImageNet-1k: {', '.join(strange[:NAMED])}"
        remedy = "name each folder by its wnid (n01440764)"
        yield Finding(
            "error",
            str(where),
            what,
            f"numbers are sorted as text, so labels are wrong; {remedy}" if numbers else remedy,
        )
    elif list(classes) != sorted(classes):
        yield Finding("error", str(where), "classes are not in the order of their wnids", "sort them by wnid")


def count_findings(kind: str, split: str, images: int, where: Path) -> Iterator[Finding]:
    """Yield a finding if the number of images differs from the published one."""
    known = KNOWN.get(kind)
    if known is None or images == (expected := known.train if split == "train" else known.val):
        return
    less = f"{abs(images - expected):,} {'fewer' if images < expected else 'more'}"
    what = f"has {images:,} {split} images, {less} than {known.title}"
    if split == "val":
        yield Finding("error", str(where), what, "accuracy on them cannot be compared with a paper's")
    else:
        yield Finding("warning", str(where), what, "training works, but report it with the numbers")


def file_name_findings(listing: Listing) -> Iterator[Finding]:
    """Yield findings about training images whose names start with another class's wnid (renamed or swapped classes)."""
    wrong: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    for place, label in enumerate(listing.labels.tolist()):
        base = listing.files.name(place).rpartition("/")[2]
        wnid, name = base.partition("_")[0], listing.classes[label]
        if wnid != name and WNID.fullmatch(wnid) and WNID.fullmatch(name):
            wrong.setdefault(name, Counter())[wnid] += 1
            first.setdefault(name, listing.files.text(place))
    yield from first_of(_misnamed(wrong, first), len(wrong), str(listing.files.root), "classes have such images")


def _misnamed(wrong: dict[str, Counter[str]], first: dict[str, str]) -> Iterator[Finding]:
    """Yield a finding per class; `wrong` counts the wnids its images' names start with, `first` is the first image."""
    for name, others in wrong.items():
        other, images = others.most_common(1)[0]
        what = f"is labelled {name}, but the names of {images} images of this class start with {other}"
        swapped = other in wrong and wrong[other].most_common(1)[0][0] == name
        remedy = f"{name} and {other} seem swapped: swap them back" if swapped else "move them to their class"
        yield Finding("error", first[name], what, remedy)


def real_findings(listing: Listing, where: Path) -> Iterator[Finding]:
    """Compare validation labels with ReaL's, if images have their published names and classes their wnids."""
    mine = indices(listing.classes)
    right, counted, of_class = 0, 0, {number: Counter[int]() for number in mine if number is not None}
    images: Counter[int] = Counter()
    for place, label in enumerate(listing.labels.tolist()):
        image, number = val_number(listing.files.name(place)), mine[label]
        if image is None or number is None or not (real := real_labels()[image]):
            continue
        counted, right = counted + 1, right + (number in real)
        images[number] += 1
        of_class[number].update(real)
    if not counted:
        return
    if right < AGREEING * counted:
        what = f"only {right:,} of {counted:,} labels agree with ReaL; about 90 % of ImageNet's published labels do"
        yield Finding(
            "error", str(where), what, "the labels are in another order: check the file or folders that define them"
        )
    if 2 * right < counted and counted > FEW:
        return  # every class is wrong; do not list each
    swapped = [finding for number, seen in of_class.items() for finding in _others(number, images[number], seen, where)]
    yield from first_of(swapped, len(swapped), str(where), "classes have such labels")


def _others(number: int, images: int, seen: Counter[int], where: Path) -> Iterator[Finding]:
    """Yield a finding if, by ReaL's labels, most images of a class belong to one other class."""
    if images and seen[number] <= images // 10:
        other, times = seen.most_common(1)[0]
        if times > 0.6 * images:
            what = f"{images} images are labelled {wnids()[number]}, but ReaL labels {times} of them {wnids()[other]}"
            yield Finding(
                "error", str(where), what, "check whether two classes are swapped, and move the images to their class"
            )


def first_of(findings: Iterable[Finding], count: int, where: str, what: str) -> Iterator[Finding]:
    """Yield at most `MOST` of `count` findings, then a line with the number of further ones."""
    yield from itertools.islice(findings, MOST)
    if count > MOST:
        yield Finding("error", where, f"{count - MOST} more {what}", "fix those above and check again")
