"""Part of a training split, named by a text file: SimCLR's 1 % and 10 % of ImageNet, or any other.

    subset=/lists/1percent.txt        n01632777_1000.JPEG, or n01632777/n01632777_1000.JPEG, one a line

Lines are names of files with or without their folders. The classes stay those of the whole split.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.layouts.listing import Listing

NAMED = 3  # missing images named in a message


def subset(listing: Listing, file: str | Path) -> Listing:
    """The images of `listing` that `file` names, in the order of the data set.

    Raises:
        FileNotFoundError: if there is no such file.
        UnfitError: (a ValueError) if it names none, an image that is not there, or one that could be several.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"subset={file} is not a file; name a text file with one image name per line")
    content = path.read_bytes()
    try:
        wanted = {line.strip().removeprefix("./") for line in content.decode("utf-8").splitlines() if line.strip()}
    except UnicodeDecodeError:
        raise unfit(path, "is not a text file", "write one image name per line") from None
    if not wanted:
        raise unfit(path, "names no images", "write one image name per line")
    places: list[int] = []
    matched: dict[str, int] = {}
    for place in range(len(listing.files)):
        name = listing.files.name(place)
        line = name if name in wanted else name.rpartition("/")[2]
        if line in wanted:
            places.append(place)
            matched[line] = matched.get(line, 0) + 1
    _complete(path, wanted, matched, listing)
    digest = hashlib.sha256(content).hexdigest()[:16]
    return listing.chosen(
        np.array(places, dtype=np.int64), {"subset": f"{len(places)} images of {path.name}, {digest}"}
    )


def _complete(path: Path, wanted: set[str], matched: dict[str, int], listing: Listing) -> None:
    if missing := sorted(wanted - matched.keys()):
        what = f"names {len(wanted)} images, of which {len(missing)} do not exist: {', '.join(missing[:NAMED])}"
        raise unfit(path, what, f"use a list for this data set, whose first image is {listing.files.name(0)}")
    if twice := [line for line, times in matched.items() if times > 1]:
        raise unfit(path, f"names {twice[0]}, which exists {matched[twice[0]]} times", "write it with its folder")
