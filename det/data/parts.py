"""The files of a COCO-style data set that a detection run reads, for its fingerprint. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mimbench.det.data.lvis import lvis_files
from mimbench.engine.data.content import Part
from mimbench.engine.data.datasets import Split, coco_files, coco_root


def coco_parts(directory: Path, splits: Sequence[Split], benchmark: str = "coco") -> Iterator[Part]:
    """Yield annotations and images of these splits; LVIS's images are in COCO's folders of either split.

    All images of the data set count if the layout's image folder does not exist: the annotations name others.
    """
    for split in splits:
        files = lvis_files(directory, split) if benchmark == "lvis" else coco_files(directory, split)
        yield Part(f"{split} annotations", files.annotations.parent, (files.annotations.name,))
        if benchmark != "lvis":
            yield Part(f"{split} images", files.images if files.images.is_dir() else coco_root(directory))
    if benchmark == "lvis":
        root = coco_root(directory)
        for name in ("train2017", "val2017"):
            yield Part(name, root / name)
