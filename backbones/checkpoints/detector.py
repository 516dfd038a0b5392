"""Read a whole detector: ViTDet Mask R-CNN as detectron2 saves it, or as mimbench does, with detectron2's names.

`backbones.weights` uses this for files in the role of a detector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.finite import require_finite
from mimbench.backbones.checkpoints.opening import Opened

PARTS = ("backbone.net.", "proposal_generator.", "roi_heads.")  # the prefixes of a whole detector's names
NO_WEIGHTS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*")  # constants in old files
RELATIVE = re.compile(r"(?:(?:backbone\.)?net\.)?(blocks\.\d+\.attn\.rel_pos_[hw])")  # in a file of the backbone alone


def is_detector(opened: Opened) -> bool:
    """Whether the file holds a whole detector: a ViTDet backbone, a proposal head and box heads."""
    return all(any(key.startswith(part) for key in named(opened)) for part in PARTS)


def detector_weights(opened: Opened) -> dict[str, Tensor]:
    """Return the weights of a whole detector in float32, with detectron2's names.

    Raises:
        ValueError: naming the first that is not finite.
    """
    weights = {key: value for key, value in named(opened).items() if not NO_WEIGHTS.fullmatch(key)}
    return _in_float32(weights, opened.file)


def trained_relative_positions(opened: Opened) -> dict[str, Tensor]:
    """Return the relative positions of a file with only a ViTDet backbone, in float32, with a detector's names.

    Empty for any other file, and if all are zero, as before training.

    Raises:
        ValueError: naming the first that is not finite.
    """
    found = ((RELATIVE.fullmatch(key), value) for key, value in named(opened).items())
    tables = _in_float32({f"{PARTS[0]}{match[1]}": value for match, value in found if match}, opened.file)
    return tables if any(value.any() for value in tables.values()) else {}


def named(opened: Opened) -> dict[str, Tensor]:
    """Return the tensors of a file, unchanged, with a detector's names."""
    return {key.removeprefix("module."): value for key, value in opened.weights.items()}


def _in_float32(weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    copies = {key: value.to(torch.float32, copy=True) for key, value in weights.items()}
    require_finite(copies, file)
    return copies
