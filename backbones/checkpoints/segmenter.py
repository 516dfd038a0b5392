"""A whole segmenter in a file: UperNet as mmsegmentation saves it, as BEiT's code does, or as we do.

`backbones.weights` asks these questions, of files that are taken as segmenters. Ours have mmsegmentation's names; those
of BEiT's code (mmsegmentation 0.x) are brought to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.finite import require_finite
from mimbench.backbones.checkpoints.info import meaning
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.checkpoints.weight_sets import SEGMENTER
from mimbench.backbones.config import Traits, ViT

PARTS = ("backbone.", "decode_head.")  # what the names of a whole segmenter begin with
COMPUTED = re.compile(r".*relative_position_index|.*attn\.k_bias|data_preprocessor\..*")  # in files, and no weights
POOL_SCALES = [1, 2, 3, 6]  # mmsegmentation's; only others count, so that files of earlier releases keep their hashes
RENAMED = (
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^(layers\.\d+)\.norm([12])\.", r"\1.ln\2."),
    (r"^(layers\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
    (r"^(layers\.\d+)\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"^(layers\.\d+)\.mlp\.fc2\.", r"\1.ffn.layers.1."),
)
OF_BEIT = (  # BEiT's own code (mmsegmentation 0.x) has the pyramid in the backbone, by other names
    (r"^backbone\.fpn1\.", "neck.upsample_4x."),
    (r"^backbone\.fpn2\.", "neck.upsample_2x."),
)


def renamed(name: str) -> str:
    """Return the name that mmsegmentation gives the parameter `name` of a timm-like encoder."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def is_segmenter(opened: Opened) -> bool:
    """Return whether the file holds a whole segmenter: a backbone and a decode head."""
    return all(any(key.startswith(part) for key in _named(opened)) for part in PARTS)


def segmenter_weights(opened: Opened) -> dict[str, Tensor]:
    """Return the weights of a whole segmenter in float32 (integers as they are), by mmsegmentation's names; copies.

    Raises:
        ValueError: naming the first that is not finite.
    """
    named = {key: value for key, value in _named(opened).items() if not COMPUTED.fullmatch(key)}
    of_beit = any(key.startswith("backbone.fpn") for key in named)
    weights = {}
    for key, value in named.items():
        name = _from_beit(key) if of_beit else key
        weights[name] = value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
    require_finite(weights, opened.file)
    return weights


def segmenter_meaning(opened: Opened) -> dict[str, Any] | None:
    """Return what changes a segmenter's outputs beside its tensors, as JSON values; None if the file does not tell.

    Only our own files tell: the encoder's heads, traits and outputs, how positions are resized, mean and deviation.

    Raises:
        ValueError: naming the file, if its description is not valid.
    """
    text = opened.metadata.get(SEGMENTER)
    if text is None:
        return None
    try:
        told: dict[str, Any] = json.loads(text)
        told |= {"vit": ViT(**told["vit"]), "traits": Traits(**told["traits"]), "outputs": list(told["outputs"])}
        sides = told.get("pool_scales") or POOL_SCALES  # other sides fit the same weights
        pooled = {} if list(sides) == POOL_SCALES else {"pool_scales": list(sides)}
        return meaning(SimpleNamespace(**told)) | {"outputs": told["outputs"]} | pooled
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{opened.file}: this version of mimbench cannot read its description of the segmenter ({error}); "
            "save it again with the version that trained it"
        ) from None


def _named(opened: Opened) -> Mapping[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in opened.weights.items()}


def _from_beit(name: str) -> str:
    for pattern, replacement in OF_BEIT:
        name = re.sub(pattern, replacement, name)
    beginning = "backbone."
    return beginning + renamed(name.removeprefix(beginning)) if name.startswith(beginning) else name
