"""Read and write a trained segmenter as a file for mmsegmentation and for mimbench.

The file holds {"state_dict": weights with mmsegmentation's names, "meta": class names, "segmenter": JSON}.
mmsegmentation's runner loads the first two. The third holds what the weights do not tell: the number of attention
heads, the encoder's traits, the sides of the pooled maps, and the mean and deviation of the images.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mimbench.backbones.checkpoints.file_kind import kind_of
from mimbench.backbones.checkpoints.opening import parse_location
from mimbench.backbones.checkpoints.weight_sets import SEGMENTER
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.engine.run.atomic import write_with
from mimbench.seg.model.segmenter import UPerNet

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Described:
    """The description that `save_segmenter` writes with the weights."""

    vit: ViT  # the encoder's sizes; `vit.image` is the segmenter's image side
    traits: Traits
    interpolation: Interpolation
    outputs: tuple[int, ...]
    mean: RGB
    std: RGB
    classes: tuple[str, ...]
    pool_scales: tuple[int, ...] | None = None  # of UPerHead; None in files of earlier releases


def save_segmenter(file: Path, model: UPerNet, about: Described) -> None:
    """Write `model` to `file` (.pth), atomically.

    Raises:
        OSError: if it cannot be written; an existing file is then unchanged.
    """
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    meta = {"dataset_meta": {"classes": list(about.classes)}}
    content = {"state_dict": weights, "meta": meta, SEGMENTER: json.dumps(asdict(about))}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # a handle, because torch writes a path's name into the file
            torch.save(content, handle)

    write_with(file, write)


def described(path: str | Path) -> Described | None:
    """Return the description that `save_segmenter` wrote; None for a file of another project."""
    file = parse_location(str(path))[0]
    if kind_of(file) != "torch":
        return None
    try:
        text = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(SEGMENTER)
    except (RuntimeError, AttributeError, pickle.UnpicklingError):  # mimbench's files hold only weights and text
        return None
    if not isinstance(text, str):
        return None
    about = json.loads(text)
    return Described(
        ViT(**about["vit"]),
        Traits(**about["traits"]),
        about["interpolation"],
        tuple(about["outputs"]),
        _rgb(about["mean"]),
        _rgb(about["std"]),
        tuple(about["classes"]),
        tuple(about["pool_scales"]) if about.get("pool_scales") else None,
    )


def _rgb(values: Sequence[float]) -> RGB:
    red, green, blue = values
    return red, green, blue
