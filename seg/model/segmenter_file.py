"""A trained segmenter as a file, for mmsegmentation as well as for us.

What is written is {"state_dict": weights by mmsegmentation's names, "meta": names of the classes, "segmenter": JSON}.
mmsegmentation's runner loads the first two. The third says what weights do not tell: heads of the attention, an
encoder's traits, and the mean and deviation of the images.
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
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.engine.run.atomic import write_with
from mimbench.seg.model.segmenter import UPerNet

ABOUT = "segmenter"
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Described:
    """What `save_segmenter` writes beside the weights."""

    vit: ViT  # of the encoder, for the segmenter's own size of image
    traits: Traits
    interpolation: Interpolation
    outputs: tuple[int, ...]
    mean: RGB
    std: RGB
    classes: tuple[str, ...]


def save_segmenter(file: Path, model: UPerNet, about: Described) -> None:
    """Write `model` to `file` (.pth), atomically.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    meta = {"dataset_meta": {"classes": list(about.classes)}}
    content = {"state_dict": weights, "meta": meta, ABOUT: json.dumps(asdict(about))}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # a handle, for torch writes a path's name into the file
            torch.save(content, handle)

    write_with(file, write)


def described(path: str | Path) -> Described | None:
    """What `save_segmenter` wrote beside the weights; None of another's file."""
    file = parse_location(str(path))[0]
    if kind_of(file) != "torch":
        return None
    try:
        text = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(ABOUT)
    except (RuntimeError, AttributeError, pickle.UnpicklingError):  # what we write has weights and text alone
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
    )


def _rgb(values: Sequence[float]) -> RGB:
    red, green, blue = values
    return red, green, blue
