"""The names in a state dictionary: remove common wrappers, and recognise networks that are not ViTs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

WRAPPERS = (
    "module.", "model.", "state_dict.", "_orig_mod.", "_fsdp_wrapped_module.", "backbone.", "encoder.", "student.",
    "teacher.", "network.", "bottom_up.", "net.", "vit.", "trunk.", "timm_model.",
)  # fmt: skip
ENCODER_LIKE = re.compile(r"(.*\.)?(patch_embed\.|blocks\.\d+\.|cls_token$|pos_embed$)")

MMDETECTION = "a whole detector of mmdetection"
OTHER_NETWORKS = (  # (network, a key that identifies it), tried in order
    ("a text model", r"(.*\.)?(word_embeddings|embed_tokens|wte|tok_embeddings|shared)\.weight"),
    ("a text model", r"(.*\.)?(lm_head|token_embedding)\.weight"),
    ("a Swin transformer", r"(.*\.)?layers\.\d+\.blocks\.\d+\..*"),
    ("a ConvNeXt", r"(.*\.)?(stages\.\d+(\.blocks)?\.\d+\.(dwconv|conv_dw)|downsample_layers\.\d+\.\d+)\..*"),
    ("a ResNet", r"(.*\.)?(layer[1-4]\.\d+|res[2-5]\.\d+)\.conv1\.weight"),
    (MMDETECTION, r"(.*\.)?(rpn_head|roi_head|bbox_head)\..*"),
    ("a convolutional network", r"(.*\.)?(conv1|conv_stem|stem\.conv1|stem\.0|features\.0(\.0)?)\.weight"),
)


class Unwrapped(NamedTuple):
    """Names without wrappers."""

    names: dict[str, str]  # the file's name -> the name without wrappers, in the file's order
    wrappers: tuple[str, ...]  # the removed wrappers, outermost first


def unwrap(keys: Iterable[str]) -> Unwrapped:
    """Remove each wrapper that all encoder keys share; if no key looks like an encoder's, that all keys share.

    Other keys lose the wrapper too if they have it, and otherwise keep their name: `head.*` beside `backbone.*`.
    """
    names, taken = {key: key for key in keys}, []
    while (wrapper := _shared(names.values())) is not None:
        shorter = {key: name.removeprefix(wrapper) for key, name in names.items()}
        if len(set(shorter.values())) < len(shorter):
            break  # two keys would become one
        names = shorter
        taken.append(wrapper)
    return Unwrapped(names, tuple(taken))


def _shared(names: Iterable[str]) -> str | None:
    every = list(names)
    core = [name for name in every if ENCODER_LIKE.match(name)] or every
    return next((wrapper for wrapper in WRAPPERS if core and all(name.startswith(wrapper) for name in core)), None)


def other_network(weights: Mapping[str, Tensor]) -> str | None:
    """Name the network of `weights` of no known family, if it can be told; a text model has no image kernel."""
    sees = any(value.ndim == 4 for value in weights.values())
    for what, rule in OTHER_NETWORKS:
        if sees != (what == "a text model") and any(re.fullmatch(rule, key) for key in weights):
            return what
    return None
