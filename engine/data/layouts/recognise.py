"""Recognise the layout of a data set from its files; there is no setting for it.

| data set | reader |
|---|---|
| ImageNet and whatever is like it: folders, tars, a flat val/, Tiny-ImageNet, WebDataset, packed | imagenet.py |
| CIFAR-10 and CIFAR-100 | cifar.py |
| iNaturalist, Places365 | listed.py |
| shards named by a pattern | webdataset.py |

To add one: a function that opens a split of it, one that tells whether it is there, and a row in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mimbench.engine.data.datasets import Split, UnfitError, is_pattern
from mimbench.engine.data.layouts import cifar, imagenet, listed, webdataset
from mimbench.engine.data.layouts.listing import Listing
from mimbench.engine.data.layouts.parts import split_root
from mimbench.engine.data.layouts.subset import subset as part_of

LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path, Split], Listing]], ...] = (
    (is_pattern, webdataset.open_pattern),
    (cifar.found, cifar.open_listing),
    (listed.is_inaturalist, listed.open_inaturalist),
    (listed.is_places365, listed.open_places365),
)


def open_listing(root: Path, split: Split, subset: str | Path | None = None) -> Listing:
    """The images of `split` of the data set at `root` in any layout; with `subset`, those that this file names.

    Raises:
        FileNotFoundError: if `root` or the split is not there.
        UnfitError: (a ValueError) if it holds no images or no classes, or is damaged.
    """
    reader = next((reader for fits, reader in LAYOUTS if fits(root)), imagenet.open_listing)
    listing = reader(root, split)
    return listing if subset is None else part_of(listing, subset)


def splits_of(root: Path) -> list[Split]:
    """The splits at `root`; empty if there are none or `root` is no data set."""
    if any(fits(root) for fits, _ in LAYOUTS):
        both: tuple[Split, Split] = ("train", "val")
        return [split for split in both if _opens(root, split)]
    return imagenet.splits_of(root) if split_root(root).is_dir() else []


def _opens(root: Path, split: Split) -> bool:
    try:
        return not open_listing(root, split).splitless
    except FileNotFoundError:
        return False
    except UnfitError:  # present but damaged
        return True
