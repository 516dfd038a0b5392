"""Load weights into a segmenter: an encoder's of any known family, or a whole segmenter in mmsegmentation's format.

An encoder's weights are renamed to mmsegmentation's. In a file of MAE's the segmenter's additions (LayerScale, relative
positions) are missing, and MAE's final norm is unexpected. `Loaded` lists both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.finite import require_finite
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import Interpolation
from mimbench.backbones.positions import resize_positions
from mimbench.seg.model.relative import resize_relative
from mimbench.seg.model.vit import OtherViT, SegmentationViT

WHOLE = ("backbone.", "decode_head.")  # the prefixes of a whole segmenter's names
TABLE = "attn.relative_position_bias_table"
RENAMED = (
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^(layers\.\d+)\.norm([12])\.", r"\1.ln\2."),
    (r"^(layers\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
    (r"^(layers\.\d+)\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"^(layers\.\d+)\.mlp\.fc2\.", r"\1.ffn.layers.1."),
)
COMPUTED = re.compile(r".*relative_position_index|.*attn\.k_bias|data_preprocessor\..*")  # in files, but not weights
OF_BEIT = (  # BEiT's code (mmsegmentation 0.x) has the pyramid in the backbone, with other names
    (r"^backbone\.fpn1\.", "neck.upsample_4x."),
    (r"^backbone\.fpn2\.", "neck.upsample_2x."),
)


@dataclass(frozen=True)
class Loaded:
    """The weights that did not match when an encoder was loaded, with the segmenter's names."""

    missing: tuple[str, ...]  # not in the file: they keep their initial values
    unexpected: tuple[str, ...]  # not in the segmenter: they are left out


def renamed(name: str) -> str:
    """Return mmsegmentation's name for the parameter `name` of an encoder with timm's names."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


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


def segmenter_in(path: str | Path) -> dict[str, Tensor] | None:
    """Return the weights, in float32, of the whole segmenter in the file at `path`; None for any other file.

    Reads files of mmsegmentation, of BEiT (mmsegmentation 0.x; names are converted to 1.x) and of mimbench.

    Raises:
        FileNotFoundError, ValueError: as `open_checkpoint`; also for weights that are not finite.
    """
    opened = open_checkpoint(path)
    named = {key.removeprefix("module."): value for key, value in opened.weights.items()}
    if not all(any(key.startswith(part) for key in named) for part in WHOLE):
        return None
    of_beit = any(key.startswith("backbone.fpn") for key in named)
    weights = {}
    for key, value in named.items():
        if COMPUTED.fullmatch(key):
            continue
        name = _from_beit(key) if of_beit else key
        weights[name] = value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
    require_finite(weights, opened.file)
    return weights


def _from_beit(name: str) -> str:
    for pattern, replacement in OF_BEIT:
        name = re.sub(pattern, replacement, name)
    beginning = "backbone."
    return beginning + renamed(name.removeprefix(beginning)) if name.startswith(beginning) else name
