"""Whether labels mean what they should: a wrong order or two swapped classes are what halves an accuracy silently.

Three things are known without any label of the data set itself: the wnids of ImageNet-1k (timm), the wnid that begins
the name of each training image (n01440764_10026.JPEG), and ReaL's labels of the validation images, by their numbers.
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

FEW = 20  # validation images: of so few one class may be most
AGREEING = 0.8  # of the validation images agree with ReaL at least; the published labels do for nine in ten
NAMED = 3  # classes or files in a message
MOST = 10  # findings of one kind; the rest are counted


@dataclass(frozen=True)
class Known:
    """What a data set holds as published."""

    title: str
    classes: int
    train: int
    val: int
    names: tuple[str, ...] = ()  # of the classes, in order, where they are known and few


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
    """What is wrong with the classes of a data set and their order, by their names alone."""
    known = KNOWN.get(kind)
    if known is not None and len(classes) != known.classes:
        remedy = "numbers from it cannot be compared; add what is missing, or check it as `images`"
        what = f"has {len(classes)} classes, where {known.title} has {known.classes}"
        missing = sorted(set(wnids()) - set(classes)) if kind == "imagenet" else []
        named = f" ({', '.join(missing)} missing)" if 0 < len(missing) <= NAMED else ""
        yield Finding("error", str(where), what + named, remedy)
    if known is not None and known.names and tuple(classes) != known.names:
        what = f"numbers its classes {', '.join(classes[:NAMED])}, ..., where {known.title} has "
        yield Finding("error", str(where), what + f"{', '.join(known.names[:NAMED])}, ...", "put them in this order")
    if kind == "imagenet":
        yield from _wnid_findings(classes, where)
    elif len(classes) > 10 and all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        yield Finding(
            "warning",
            str(where),
            f"has classes named by numbers, which sort as texts: {', '.join(classes[:NAMED])}",
            f"write them with as many digits ({int(classes[0]):04}) if the numbers are to be the labels",
        )


def _wnid_findings(classes: Sequence[str], where: Path) -> Iterator[Finding]:
    """Against ImageNet-1k's list."""
    if list(classes) == [str(number) for number in range(len(classes))]:
        what = "has classes without names, so that their order cannot be told from these"
        yield Finding("note", str(where), what, "ReaL's labels tell it, where the validation images have their names")
        return
    order = wnids()
    if strange := [name for name in classes if name not in set(order)]:
        numbers = all(name.isdecimal() for name in strange)
        what = f"has {len(strange)} classes that are none of ImageNet-1k's: {', '.join(strange[:NAMED])}"
        remedy = "name each folder by its wnid (n01440764)"
        yield Finding(
            "error",
            str(where),
            what,
            f"numbers sort as texts, and labels come out wrong; {remedy}" if numbers else remedy,
        )
    elif list(classes) != sorted(classes):
        yield Finding("error", str(where), "does not number its classes in the order of their wnids", "sort them")


def count_findings(kind: str, split: str, images: int, where: Path) -> Iterator[Finding]:
    """Against the number of images as published."""
    known = KNOWN.get(kind)
    if known is None or images == (expected := known.train if split == "train" else known.val):
        return
    less = f"{abs(images - expected):,} {'fewer' if images < expected else 'more'}"
    what = f"has {images:,} {split} images, {less} than {known.title}"
    if split == "val":
        yield Finding("error", str(where), what, "accuracy on them cannot be compared with a paper's")
    else:
        yield Finding("warning", str(where), what, "training goes on with these; say so beside the numbers")


def file_name_findings(listing: Listing) -> Iterator[Finding]:
    """Training images whose names begin with another wnid than their class's: classes that were renamed or swapped."""
    wrong: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    for place, label in enumerate(listing.labels.tolist()):
        base = listing.files.name(place).rpartition("/")[2]
        wnid, name = base.partition("_")[0], listing.classes[label]
        if wnid != name and WNID.fullmatch(wnid) and WNID.fullmatch(name):
            wrong.setdefault(name, Counter())[wnid] += 1
            first.setdefault(name, listing.files.text(place))
    yield from first_of(_misnamed(wrong, first), len(wrong), str(listing.files.root), "classes are named so")


def _misnamed(wrong: dict[str, Counter[str]], first: dict[str, str]) -> Iterator[Finding]:
    """From how often the names of a class's images begin with which wnid, and the first such image."""
    for name, others in wrong.items():
        other, images = others.most_common(1)[0]
        what = f"is labelled {name}, but the names of {images} images of this class begin with {other}"
        swapped = other in wrong and wrong[other].most_common(1)[0][0] == name
        remedy = (
            f"the names of {name} and {other} seem swapped: swap them back" if swapped else "move them to their class"
        )
        yield Finding("error", first[name], what, remedy)


def real_findings(listing: Listing, where: Path) -> Iterator[Finding]:
    """Validation labels against ReaL's, where images have their published names and classes their wnids."""
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
        what = f"labels {right:,} of {counted:,} images as ReaL does; ImageNet's own labels agree for nine in ten"
        yield Finding(
            "error", str(where), what, "the labels are in another order: check the file or folders they are from"
        )
    if 2 * right < counted and counted > FEW:
        return  # no class is right, and each would be a line
    swapped = [finding for number, seen in of_class.items() for finding in _others(number, images[number], seen, where)]
    yield from first_of(swapped, len(swapped), str(where), "classes are labelled so")


def _others(number: int, images: int, seen: Counter[int], where: Path) -> Iterator[Finding]:
    """A class that almost none of its images belong to, by ReaL's labels, and most to one other."""
    if images and seen[number] <= images // 10:
        other, times = seen.most_common(1)[0]
        if times > 0.6 * images:
            what = f"labels {images} images {wnids()[number]}, {times} of which are {wnids()[other]} by ReaL's labels"
            yield Finding("error", str(where), what, "are two classes swapped? Put them into the folder of their class")


def first_of(findings: Iterable[Finding], count: int, where: str, what: str) -> Iterator[Finding]:
    """`MOST` of `count` findings at most, and how many more there are."""
    yield from itertools.islice(findings, MOST)
    if count > MOST:
        yield Finding("error", where, f"{count - MOST} more {what}", "mend those above and check again")
