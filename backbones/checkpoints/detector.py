"""A whole detector in a file: ViTDet Mask R-CNN as detectron2 saves it, or as we do, whose names are detectron2's.

`backbones.weights` asks these questions, of files that are taken as detectors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.opening import Opened

PARTS = ("backbone.net.", "proposal_generator.", "roi_heads.")  # what the names of a whole detector begin with
NO_WEIGHTS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*")  # constants that old files hold
RELATIVE = re.compile(r"(?:(?:backbone\.)?net\.)?(blocks\.\d+\.attn\.rel_pos_[hw])")  # of a backbone alone


def is_detector(opened: Opened) -> bool:
    """Whether the file holds a whole detector: a ViTDet backbone, a proposal head and box heads."""
    return all(any(key.startswith(part) for key in named(opened)) for part in PARTS)


def detector_weights(opened: Opened) -> dict[str, Tensor]:
    """The weights of a whole detector in float32, by detectron2's names.

    Raises:
        ValueError: naming the first that is not finite.
    """
    weights = {key: value for key, value in named(opened).items() if not NO_WEIGHTS.fullmatch(key)}
    return _in_float32(weights, opened.file)


def trained_relative_positions(opened: Opened) -> dict[str, Tensor]:
    """The relative positions, in float32, of a ViTDet backbone alone, by a detector's names.

    Empty for any other file, and where they are zero, as they are before training.

    Raises:
        ValueError: naming the first that is not finite.
    """
    found = ((RELATIVE.fullmatch(key), value) for key, value in named(opened).items())
    tables = _in_float32({f"{PARTS[0]}{match[1]}": value for match, value in found if match}, opened.file)
    return tables if any(value.any() for value in tables.values()) else {}


def named(opened: Opened) -> dict[str, Tensor]:
    """The tensors in a file by a detector's names, as they are in the file."""
    return {key.removeprefix("module."): value for key, value in opened.weights.items()}


def _in_float32(weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    copies = {key: value.to(torch.float32, copy=True) for key, value in weights.items()}
    for key, value in copies.items():
        if not value.isfinite().all():
            raise ValueError(f"{file}: {key} holds NaN or infinite weights; the training diverged")
    return copies
