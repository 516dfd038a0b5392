"""A whole detector in a file: ViTDet Mask R-CNN as detectron2 saves it, or as we do, whose names are detectron2's."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from backbones.checkpoints.opening import open_checkpoint

PARTS = ("backbone.net.", "proposal_generator.", "roi_heads.")  # what the names of a whole detector begin with
NO_WEIGHTS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*")  # constants that old files hold


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
    for key, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{opened.file}: {key} holds NaN or infinite weights; the training diverged")
    return weights
