"""A whole detector in a file: ViTDet Mask R-CNN as detectron2 saves it, or as we do, whose names are detectron2's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.opening import open_checkpoint

PARTS = ("backbone.net.", "proposal_generator.", "roi_heads.")  # what the names of a whole detector begin with
NO_WEIGHTS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*")  # constants that old files hold


RELATIVE = re.compile(r"(?:(?:backbone\.)?net\.)?(blocks\.\d+\.attn\.rel_pos_[hw])")  # of a backbone alone


def relative_positions_in(path: str | Path, copy: str | None = None) -> dict[str, Tensor] | None:
    """The relative positions, in float32, of a ViTDet backbone alone in the file at `path`, by a detector's names.

    None of any other file, of a whole detector, and where they are zero, as they are before training.

    Raises:
        FileNotFoundError, ValueError: as `detector_in`.
    """
    opened = open_checkpoint(path, copy)
    named = {key.removeprefix("module."): value for key, value in opened.weights.items()}
    if all(any(key.startswith(part) for key in named) for part in PARTS):
        return None
    tables = {
        f"{PARTS[0]}{match[1]}": value.to(torch.float32, copy=True)
        for key, value in named.items()
        if (match := RELATIVE.fullmatch(key))
    }
    _require_finite(tables, opened.file)
    return tables if any(value.any() for value in tables.values()) else None


def detector_in(path: str | Path, copy: str | None = None) -> dict[str, Tensor] | None:
    """The weights in float32 of the detector in the file at `path`, by detectron2's names; None of any other file.

    Raises:
        FileNotFoundError, ValueError: as `open_checkpoint`; also for weights that are not finite.
    """
    opened = open_checkpoint(path, copy)
    named = {key.removeprefix("module."): value for key, value in opened.weights.items()}
    if not all(any(key.startswith(part) for key in named) for part in PARTS):
        return None
    weights = {key: value.to(torch.float32, copy=True) for key, value in named.items() if not NO_WEIGHTS.fullmatch(key)}
    _require_finite(weights, opened.file)
    return weights


def _require_finite(weights: Mapping[str, Tensor], file: Path) -> None:
    for key, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{file}: {key} holds NaN or infinite weights; the training diverged")
