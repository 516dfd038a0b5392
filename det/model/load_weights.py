"""Load a whole detector as the start of a detection run: detectron2's ViTDet Mask R-CNN, or a mimbench detector.

All weights are loaded, including relative positions, pyramid and heads, because the names are the same. Relative
positions for another image size are resized linearly, as detectron2 does at every step.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimbench.backbones.window_attention import resize_decomposed
from mimbench.det.model.mask_rcnn import MaskRCNN


def load_detector(model: MaskRCNN, weights: Mapping[str, Tensor], file: str) -> None:
    """Load `weights` (from `backbones.weights.open_weights(file, "detector")`) of `file` into `model`.

    Raises:
        ValueError: if they do not fit `model`; names the first that differs.
    """
    own = model.state_dict()
    given = {
        key: resize_decomposed(value, len(own[key])) if ".rel_pos_" in key and key in own else value
        for key, value in weights.items()
    }
    wrong = sorted(given.keys() ^ own.keys()) or [key for key in own if given[key].shape != own[key].shape]
    if wrong:
        shapes = [tuple(where[wrong[0]].shape) if wrong[0] in where else "none" for where in (given, own)]
        raise ValueError(
            f"{file} is a whole detector that differs from this run's: its {wrong[0]} is {shapes[0]}, here {shapes[1]};"
            " set vitdet.*, proposals.* and heads.* as it was trained, and use data with the same number of categories"
        )
    model.load_state_dict(given)


def load_relative_positions(model: MaskRCNN, tables: Mapping[str, Tensor], file: str) -> None:
    """Load the relative positions of a ViTDet backbone (`backbones.weights`) from `file`.

    Raises:
        ValueError: if the model has none, or different ones.
    """
    own = {key: value for key, value in model.state_dict().items() if ".rel_pos_" in key}
    given = {key: resize_decomposed(value, len(own[key])) if key in own else value for key, value in tables.items()}
    wrong = sorted(given.keys() ^ own.keys()) or [key for key in own if given[key].shape != own[key].shape]
    if wrong:
        raise ValueError(
            f"{file} holds a ViTDet with trained relative positions that do not fit this run's model: {wrong[0]}; "
            "set vitdet.rel_pos=true"
        )
    model.load_state_dict(given, strict=False)
