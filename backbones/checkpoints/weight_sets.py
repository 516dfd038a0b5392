"""Find the sets of weights in an unpickled checkpoint, choose one of them, and list what else it holds.

A set of weights is a dictionary with tensors in it, at the top or up to three levels down: `model`, `state_dict`,
`teacher`, `model.student`. Of several, the first in the order of `PREFERRED` is taken, an exponential moving average
last, and the others are reported; `copy` selects another. A small set (at most a quarter of the tensors of the largest:
a head, a centre) is taken only if named. Only names, shapes and bytes are read, never the tensors' values.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.safetensors_header import METADATA
from mimbench.backbones.checkpoints.unpickler import Array

What = Literal["optimizer", "scheduler", "arguments", "scaler", "ema", "weights", "numbers", "other"]
PREFERRED = (  # DINO and related methods evaluate the teacher, I-JEPA the target encoder
    *("model", "state_dict", "model_state_dict", "model_state", "teacher", "target_encoder"),
    *("net", "network", "module", "backbone", "encoder", "student"),
)
DEPTH = 3  # levels of nesting
DETECTOR = "detector"  # the key beside the weights in our detectors; its value describes the detector, as JSON
SEGMENTER = "segmenter"  # the same in our segmenters
_TRAINING: tuple[tuple[str, What], ...] = (  # prefixes of names
    (r"optim|opt$|opt_state", "optimizer"),
    (r"(lr_?)?sched|lr_scheduler|param_sched", "scheduler"),
    (r"\w*scaler$|amp$", "scaler"),
    (r"args$|arguments$|config$|cfg$|opts?$|options$|hparams$|hyper_parameters$|hyperparameters$|meta$", "arguments"),
)
_EMA = re.compile(r"(^|_)(ema|averaged?|swa)(_|$)", re.IGNORECASE)
_PREFIX = re.compile(r"^(module\.|_orig_mod\.|backbone\.)+")


@dataclass(frozen=True)
class Held:
    """A part of the file other than the chosen weights."""

    name: str  # its dotted name: "optimizer", "model_ema", "model.epoch"
    what: What
    bytes: int  # of its tensors
    keys: int  # number of entries; 1 for a single value


def weight_sets(tree: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the dotted name and content of every dictionary in `tree` that directly holds tensors."""
    if _count(tree):
        yield name, tree
    if depth < DEPTH:
        for key, value in tree.items():
            if isinstance(key, str) and isinstance(value, Mapping) and _training(key) is None:
                yield from weight_sets(value, _joined(name, key), depth + 1)


def chosen(sets: Mapping[str, Mapping[Any, Any]], copy: str | None) -> str:
    """Return the name of the chosen set: `copy`, or the first in the order of preference.

    Raises:
        ValueError: if `copy` names no set, or without it no set is preferred.
    """
    names = ", ".join(name or "the top level" for name in sets)
    if copy is not None:
        found = [name for name in sets if name == copy] or [name for name in sets if copy == "ema" and is_ema(name)]
        if len(found) != 1:
            raise ValueError(f"has no unique set of weights called {copy!r}; it holds {names}")
        return found[0]
    counts = {name: _count(content) for name, content in sets.items()}
    ranked = sorted((_rank(name), name) for name, count in counts.items() if 4 * count > max(counts.values()))
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        raise ValueError(f"holds several sets of weights: {names}; choose one with copy=NAME")
    return ranked[0][1]


def is_ema(name: str) -> bool:
    """Whether the set called `name` is an exponential moving average of another."""
    return any(_EMA.search(part) for part in name.split("."))


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of one dictionary, detached; arrays become tensors."""
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        tensor = value.tensor() if isinstance(value, Array) else value
        if isinstance(key, str) and isinstance(tensor, Tensor):
            found[key] = tensor.detach()
    return found


def kept_beside(tree: Mapping[Any, Any], name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what our exports keep beside "model": weights that the other library cannot hold, and the metadata."""
    kept = tree.get(METADATA)
    if name != "model" or not isinstance(kept, Mapping) or not isinstance(kept.get("about"), str):
        return {}, {}
    return tensors_of(kept), {METADATA: kept["about"]}


def texts_in(tree: Mapping[Any, Any]) -> dict[str, str]:
    """Return what our detectors and segmenters keep beside their weights: descriptions, as text."""
    return {key: tree[key] for key in (DETECTOR, SEGMENTER) if isinstance(tree.get(key), str)}


def copies_of(sets: Mapping[str, Mapping[Any, Any]], name: str) -> tuple[str, ...]:
    """Return the other sets that share at least half of the names and shapes of the set `name`."""
    shapes = _shapes(sets[name])
    others = ((other, _shapes(content)) for other, content in sets.items() if other != name)
    return tuple(other for other, found in others if 2 * len(found & shapes) >= len(shapes))


def others_in(tree: Mapping[Any, Any], name: str) -> tuple[Held, ...]:
    """Return everything in `tree` except the set of weights called `name`, one entry for each dictionary item."""
    held: list[Held] = []
    at, path = "", name
    while path:
        step = next(key for key in tree if isinstance(key, str) and f"{path}.".startswith(f"{key}."))
        held += [_held(_joined(at, str(key)), str(key), value) for key, value in tree.items() if key != step]
        tree, at, path = tree[step], _joined(at, step), path[len(step) + 1 :]
    rest = ((key, value) for key, value in tree.items() if not (isinstance(key, str) and _is_weight(value)))
    return (*held, *(_held(_joined(at, str(key)), str(key), value) for key, value in rest))


def arguments_in(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the training options in the file as plain values, merged if there are several."""
    options: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "arch" and isinstance(value, str):  # as timm's training saves the model's name
            options[key] = value
        elif isinstance(key, str) and _what(key, value) == "arguments":
            content = plain(value)
            options.update(content if isinstance(content, dict) else {key: content})
    return options


def plain(value: object, depth: int = 4) -> Any:
    """Return `value` as texts, numbers, lists and dictionaries; other objects become the name of their type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device | torch.dtype):
        return str(value)
    if depth and isinstance(value, argparse.Namespace):
        return {key: plain(entry, depth - 1) for key, entry in vars(value).items()}
    if depth and isinstance(value, Mapping):
        return {str(key): plain(entry, depth - 1) for key, entry in value.items()}
    if depth and isinstance(value, list | tuple | set):
        return [plain(entry, depth - 1) for entry in value]
    return type(value).__name__


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Array) and value.tensor() is not None)


def _count(tree: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Tensor | Array) for value in tree.values())


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _rank(name: str) -> tuple[int, ...]:
    """Return a set's rank in the order of preference: the top level first, an average last."""
    parts = name.split(".") if name else []
    known = [PREFERRED.index(part) if part in PREFERRED else len(PREFERRED) for part in parts]
    return (is_ema(name), *known)


def _shapes(content: Mapping[Any, Any]) -> set[tuple[str, torch.Size]]:
    return {(_PREFIX.sub("", key), value.shape) for key, value in tensors_of(content).items()}


def _training(key: str) -> What | None:
    """Return the kind of a part of a training state from its name; None for weights."""
    return next((what for rule, what in _TRAINING if re.match(rule, key, re.IGNORECASE)), None)


def _what(key: str, value: object) -> What:
    if isinstance(value, argparse.Namespace):
        return "arguments"
    if isinstance(value, bool | int | float):
        return "numbers"
    what = _training(key)
    if what is not None:
        return what
    if isinstance(value, Tensor | Array) or (isinstance(value, Mapping) and any(weight_sets(value))):
        return "ema" if is_ema(key) else "weights"
    return "other"


def _held(name: str, key: str, value: object) -> Held:
    keys = len(value) if isinstance(value, Mapping | list | tuple) else 1
    if isinstance(value, argparse.Namespace):
        keys = len(vars(value))
    return Held(name, _what(key, value), _bytes(value), keys)


def _bytes(value: object) -> int:
    """Return the bytes of all tensors in `value`, each counted once."""
    total, seen, waiting = 0, set[int](), [value]
    while waiting:
        entry = waiting.pop()
        if id(entry) in seen:
            continue
        seen.add(id(entry))
        if isinstance(entry, Tensor):
            total += entry.numel() * entry.element_size()
        elif isinstance(entry, Array):
            total += entry.values.nbytes
        elif isinstance(entry, Mapping):
            waiting += entry.values()
        elif isinstance(entry, list | tuple):
            waiting += entry
    return total
