"""A detection run that starts from a whole detector: detectron2's ViTDet Mask R-CNN, or one that was trained here.

Everything is taken, relative positions, pyramid and heads too, for the names are the same. Only relative positions made
for another size of image are resized, linearly, which is what detectron2 does with them at every step.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from mimbench.det.model.mask_rcnn import MaskRCNN


def load_detector(model: MaskRCNN, weights: Mapping[str, Tensor], file: str) -> None:
    """Take `weights` (of `backbones.weights.open_weights(file, "detector")`), which came from `file`.

    Raises:
        ValueError: if they are another detector's than `model` is, naming the first that does not fit.
    """
    own = model.state_dict()
    given = {
        key: _resized(value, len(own[key])) if ".rel_pos_" in key and key in own else value
        for key, value in weights.items()
    }
    wrong = sorted(given.keys() ^ own.keys()) or [key for key in own if given[key].shape != own[key].shape]
    if wrong:
        shapes = [tuple(where[wrong[0]].shape) if wrong[0] in where else "none" for where in (given, own)]
        raise ValueError(
            f"{file} is a whole detector, and another than this run's: its {wrong[0]} is {shapes[0]}, here {shapes[1]};"
            " vitdet.*, proposals.*, heads.* and the number of categories must be those it was trained with"
        )
    model.load_state_dict(given)


def load_relative_positions(model: MaskRCNN, tables: Mapping[str, Tensor], file: str) -> None:
    """Take the relative positions of a ViTDet backbone (`backbones.weights`) in `file`.

    Raises:
        ValueError: if the model has none, or others.
    """
    own = {key: value for key, value in model.state_dict().items() if ".rel_pos_" in key}
    given = {key: _resized(value, len(own[key])) if key in own else value for key, value in tables.items()}
    wrong = sorted(given.keys() ^ own.keys()) or [key for key in own if given[key].shape != own[key].shape]
    if wrong:
        raise ValueError(
            f"{file} holds a ViTDet with trained relative positions, which this run's cannot take: {wrong[0]}; "
            "vitdet.rel_pos must be true"
        )
    model.load_state_dict(given, strict=False)


def _resized(table_Rd: Tensor, rows: int) -> Tensor:
    if len(table_Rd) == rows:
        return table_Rd
    return F.interpolate(table_Rd.T[None], size=rows, mode="linear")[0].T
