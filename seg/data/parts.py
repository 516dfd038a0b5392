"""The files of a data set of label maps that a segmentation run reads, for its fingerprint. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mimbench.engine.data.content import Part
from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.splits import SPLITS
from mimbench.seg.data.layouts import SBD_LISTS, Zip, recognise, store_of


def label_map_parts(directory: Path) -> Iterator[Part]:
    """Yield images, label maps (by all their bytes), lists of names and the file of class names, of both splits.

    All images count if the layout is not recognised; the run itself says so.
    """
    try:
        store = store_of(directory)
        layout = recognise(store)
    except UnfitError:
        yield Part("images", directory)
        return
    if isinstance(store, Zip):
        yield Part("archive", store.path.parent, (store.path.name,))
        return
    root = store.path / layout.root
    for split in SPLITS:
        yield Part(f"{split} images", root / layout.images[split])
        labels = next((root / name for name in layout.labels[split] if (root / name).is_dir()), None)
        if labels is not None:
            yield Part(f"{split} label maps", labels, exact=True)
        if layout.lists is not None:
            yield Part(f"{split} list", root, layout.lists[split])
    sbd = next((store.path / name for name in layout.sbd if (store.path / name / "cls").is_dir()), None)
    if sbd is not None:
        yield Part("SBD label maps", sbd / "cls", exact=True)
        yield Part("SBD lists", sbd, SBD_LISTS)
    yield Part("classes", store.path, (layout.classes,))
