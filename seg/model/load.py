"""Load an encoder's weights, of any known family, into a segmenter.

An encoder's weights are renamed to mmsegmentation's. In a file of MAE's the segmenter's additions (LayerScale, relative
positions) are missing, and MAE's final norm is unexpected. `Loaded` lists both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mimbench.backbones.checkpoints.segmenter import COMPUTED, renamed
from mimbench.backbones.config import Interpolation
from mimbench.backbones.positions import resize_positions
from mimbench.seg.model.relative import resize_relative
from mimbench.seg.model.vit import OtherViT, SegmentationViT

TABLE = "attn.relative_position_bias_table"


@dataclass(frozen=True)
class Loaded:
    """The weights that did not match when an encoder was loaded, with the segmenter's names."""

    missing: tuple[str, ...]  # not in the file: they keep their initial values
    unexpected: tuple[str, ...]  # not in the segmenter: they are left out


def load_encoder_into(
    backbone: SegmentationViT | OtherViT, state: Mapping[str, Tensor], interpolation: Interpolation
) -> Loaded:
    """Load an encoder's weights (from `backbones.checkpoint.load_encoder`), with positions resized to the backbone's.

    Raises:
        ValueError: if a weight other than LayerScale, relative positions and `norm` is missing or unexpected, or a
            weight has the wrong shape.
    """
    if isinstance(backbone, OtherViT):
        given = dict(state)
    else:
        given = {renamed(name): value for name, value in state.items() if not COMPUTED.fullmatch(name)}
    return _loaded(backbone, resized(backbone, given, interpolation))


def resized(
    backbone: SegmentationViT | OtherViT, given: Mapping[str, Tensor], interpolation: Interpolation
) -> dict[str, Tensor]:
    """Resize the position tables in `given` to the grid of `backbone`: bicubic or as the family; BEiT's by splines."""
    own, made = backbone.state_dict(), dict(given)
    for name, value in given.items():
        if name == "pos_embed" and name in own and own[name].shape != value.shape:
            side = int((own[name].shape[1] - 1) ** 0.5)
            made[name] = resize_positions(value, (side, side), interpolation)
        elif name.endswith(TABLE) and name in own and own[name].shape != value.shape:
            grid = (int((len(own[name]) - 3) ** 0.5) + 1) // 2
            made[name] = resize_relative(value, grid)
    return made


def _loaded(backbone: SegmentationViT | OtherViT, given: Mapping[str, Tensor]) -> Loaded:
    own = backbone.state_dict()
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    wrong = [name for name in missing if not (name.endswith(TABLE) or re.search(r"gamma_[12]$", name))]
    if isinstance(backbone, OtherViT):
        wrong = [name for name in wrong if not name.startswith("rope.")]
    wrong += [name for name in unexpected if not name.startswith("norm.") and name != "pos_embed"]
    wrong += [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if wrong:
        raise ValueError(f"the encoder does not fit the segmenter: {', '.join(sorted(wrong)[:3])}")
    backbone.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)
    return Loaded(tuple(missing), tuple(unexpected))
