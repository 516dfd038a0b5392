"""The names of a state dictionary: wrappers around all of them, and what a file is that is no ViT's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

WRAPPERS = (
    "module.", "model.", "state_dict.", "_orig_mod.", "_fsdp_wrapped_module.", "backbone.", "encoder.", "student.",
    "teacher.", "network.", "bottom_up.", "net.", "vit.", "trunk.",
)  # fmt: skip
ENCODER_LIKE = re.compile(r"(.*\.)?(patch_embed\.|blocks\.\d+\.|cls_token$|pos_embed$)")

OTHER_NETWORKS = (  # (what it is, a key that gives it away), looked for in order
    ("a text model", r"(.*\.)?(word_embeddings|embed_tokens|wte|tok_embeddings|shared)\.weight"),
    ("a text model", r"(.*\.)?(lm_head|token_embedding)\.weight"),
    ("a Swin transformer", r"(.*\.)?layers\.\d+\.blocks\.\d+\..*"),
    ("a ConvNeXt", r"(.*\.)?(stages\.\d+(\.blocks)?\.\d+\.(dwconv|conv_dw)|downsample_layers\.\d+\.\d+)\..*"),
    ("a ResNet", r"(.*\.)?(layer[1-4]\.\d+|res[2-5]\.\d+)\.conv1\.weight"),
    ("a convolutional network", r"(.*\.)?(conv1|conv_stem|stem\.conv1|stem\.0|features\.0(\.0)?)\.weight"),
)


class Unwrapped(NamedTuple):
    """Names without wrappers."""

    names: dict[str, str]  # by the file's name, in its order
    wrappers: tuple[str, ...]  # what was taken off, outermost first


def unwrap(keys: Iterable[str]) -> Unwrapped:
    """Take off each wrapper that all keys of an encoder share; where there are none of an encoder, all keys.

    Other keys lose it as well, and keep their name if they do not have it: `head.*` beside `backbone.*`.
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
    """What `weights` of no known family are, where that can be told; a text model has no kernel over an image."""
    sees = any(value.ndim == 4 for value in weights.values())
    for what, rule in OTHER_NETWORKS:
        if sees != (what == "a text model") and any(re.fullmatch(rule, key) for key in weights):
            return what
    return None
