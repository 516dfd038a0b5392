"""Weights into a segmenter: an encoder's from any known family, or a whole segmenter as mmsegmentation saves it.

An encoder's weights are renamed to mmsegmentation's; what the segmenter adds (LayerScale, relative positions) is
missing in a file of MAE's, and MAE's final norm is left over. `Loaded` lists both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import Interpolation
from mimbench.backbones.positions import resize_positions
from mimbench.seg.model.relative import resize_relative
from mimbench.seg.model.vit import OtherViT, SegmentationViT

WHOLE = ("backbone.", "decode_head.")  # what the names of a whole segmenter begin with
TABLE = "attn.relative_position_bias_table"
RENAMED = (
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^(layers\.\d+)\.norm([12])\.", r"\1.ln\2."),
    (r"^(layers\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
    (r"^(layers\.\d+)\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"^(layers\.\d+)\.mlp\.fc2\.", r"\1.ffn.layers.1."),
)
COMPUTED = re.compile(r".*relative_position_index|.*attn\.k_bias|data_preprocessor\..*")  # in files, and no weights
OF_BEIT = (  # BEiT's own code (mmsegmentation 0.x) has the pyramid in the backbone, by other names
    (r"^backbone\.fpn1\.", "neck.upsample_4x."),
    (r"^backbone\.fpn2\.", "neck.upsample_2x."),
)


@dataclass(frozen=True)
class Loaded:
    """What did not meet when an encoder was loaded, by the segmenter's names."""

    missing: tuple[str, ...]  # in the file: they keep their start
    unexpected: tuple[str, ...]  # in the segmenter: they are left out


def renamed(name: str) -> str:
    """The name that mmsegmentation gives the parameter `name` of a timm-like encoder."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load_encoder_into(
    backbone: SegmentationViT | OtherViT, state: Mapping[str, Tensor], interpolation: Interpolation
) -> Loaded:
    """Take the weights of an encoder (`backbones.checkpoint.load_encoder`); positions are resized to the backbone's.

    Raises:
        ValueError: if a weight is missing or left over beyond LayerScale, relative positions and `norm`, or misshapen.
    """
    if isinstance(backbone, OtherViT):
        given = dict(state)
    else:
        given = {renamed(name): value for name, value in state.items() if not COMPUTED.fullmatch(name)}
    return _loaded(backbone, resized(backbone, given, interpolation))


def resized(
    backbone: SegmentationViT | OtherViT, given: Mapping[str, Tensor], interpolation: Interpolation
) -> dict[str, Tensor]:
    """`given` with position tables for the grid of `backbone`: bicubic or as the family does, BEiT's geometrically."""
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
    """The weights in float32 of the whole segmenter in the file at `path`; None of any other file.

    Takes mmsegmentation's files, BEiT's (of mmsegmentation 0.x, whose names are brought to 1.x's) and ours.

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
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{opened.file}: {key} holds NaN or infinite weights; the training diverged")
        weights[name] = value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
    return weights


def _from_beit(name: str) -> str:
    for pattern, replacement in OF_BEIT:
        name = re.sub(pattern, replacement, name)
    beginning = "backbone."
    return beginning + renamed(name.removeprefix(beginning)) if name.startswith(beginning) else name
