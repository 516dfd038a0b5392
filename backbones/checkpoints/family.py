"""A checkpoint family: how the files of one pretraining method, or of one library, are recognised and read.

A family is data, not code: one entry of `families.FAMILIES`. Names below are regular expressions that must match a
whole key. The way of a key through an entry:

    1. wrappers that all encoder keys share (`module.`, `model.`, `backbone.`, `encoder.` ...) are taken off (`match`)
    2. `signature` is held against these names, and so is `dropped`
    3. `prefix` is taken off; a key without it that is not dropped is suspicious
    4. `renames`, each in order; a replacement may use groups (`\\1`)
    5. `convert`, for what renaming cannot say

What is left must be exactly the encoder that the shapes and `traits` describe, or the load stops and names the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from mimbench.backbones.config import Interpolation, Traits

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # the mean and standard deviation of Google's ViTs

Positions = Literal["sincos", "learned", "relative", "rope", "none"]
Converted = tuple[dict[str, Tensor], dict[str, str]]  # the tensors, and {new key: how it came about}


@dataclass(frozen=True)
class Signature:
    """Which keys a file of the family has, and which it never has."""

    has: tuple[str, ...] = ()  # each must match some key
    any: tuple[str, ...] = ()  # at least one must match some key
    never: tuple[str, ...] = ()  # none may match any key

    def differences(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Why `keys` are not of the family, a phrase each; empty when they are."""
        found = list(keys)
        faults = [f"has no {_plain(rule)}" for rule in self.has if not _first(rule, found)]
        if self.any and not any(_first(rule, found) for rule in self.any):
            faults.append(f"has none of {', '.join(_plain(rule) for rule in self.any)}")
        unwanted = (_first(rule, found) for rule in self.never)
        return (*faults, *(f"has {key}" for key in unwanted if key))


def papers_heads(width: int) -> int:
    """Heads leave no trace in the weights: 64 channels each in all papers, but 80 in ViT-H (1280 wide).

    Raises:
        ValueError: for a width that is no multiple of 64.
    """
    if width % 64:
        raise ValueError(f"an encoder {width} wide does not tell its heads; the papers' widths are of 64 a head")
    return 16 if width == 1280 else width // 64


def table_grid(weights: Mapping[str, Tensor]) -> int:
    """Patches along one side of a pretraining image, by the rows of `pos_embed`.

    `n` rows are a square grid alone when n is a square (196 = 14 x 14), and one with a class token's row when n - 1 is.

    Raises:
        ValueError: if there is no table of three axes, or it is of no square grid.
    """
    if "pos_embed" not in weights or weights["pos_embed"].ndim != 3:
        raise ValueError("pos_embed is missing or has not 3 axes")
    rows = weights["pos_embed"].shape[1]
    side = math.isqrt(rows)
    if rows < 1 or rows - side * side > 1:
        raise ValueError(f"pos_embed has {rows} rows, which is no square grid, with or without a class token")
    return side


def always(_weights: Mapping[str, Tensor]) -> bool:
    """The names alone tell the family."""
    return True


def plain_traits(_weights: Mapping[str, Tensor]) -> Traits:
    """MAE's plain ViT."""
    return Traits()


@dataclass(frozen=True)
class Family:
    """One family of checkpoints. The module's text says in which order its parts are applied."""

    name: str  # "mae": in reports, results and the metadata of our files
    title: str  # "MAE (He et al., 2022)"
    signature: Signature
    source: str  # the paper or the repository whose files these are
    prefix: str = ""  # what the encoder's keys begin with: "base_encoder.", "visual."
    renames: tuple[tuple[str, str], ...] = ()  # (regex, replacement), searched anywhere in the key
    convert: Callable[[dict[str, Tensor]], Converted] | None = None  # gets and returns the encoder's tensors alone
    dropped: tuple[tuple[str, str], ...] = ()  # (regex, what it is): "decoder", "teacher", "head", "mask token"
    missing: tuple[str, ...] = ()  # keys of the encoder that may be absent
    unfit: tuple[tuple[str, str], ...] = ()  # (regex, why): known of the family, and still no part of our encoder
    final_norm: Literal["as found", "none"] = "as found"
    positions: Positions = "sincos"
    interpolation: Interpolation = "bicubic"  # what the family's own protocol does when the grid changes
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the images it was pretrained on, in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    notes: tuple[str, ...] = ()  # what the file cannot tell and is assumed, for the report
    fits: Callable[[Mapping[str, Tensor]], bool] = always  # what its names do not tell: shapes, a table's kind
    # of the encoder's tensors, after `renames` and `convert`:
    heads: Callable[[int], int] = papers_heads  # of the width
    grid: Callable[[Mapping[str, Tensor]], int] = table_grid  # patches along one side of a pretraining image
    traits: Callable[[Mapping[str, Tensor]], Traits] = plain_traits


@lru_cache(maxsize=1024)
def compiled(rule: str) -> re.Pattern[str]:
    """The compiled form of a rule."""
    return re.compile(rule)


def matches(rule: str, key: str) -> bool:
    """Whether `rule` matches the whole of `key`."""
    return compiled(rule).fullmatch(key) is not None


def _first(rule: str, keys: list[str]) -> str | None:
    return next((key for key in keys if matches(rule, key)), None)


def _plain(rule: str) -> str:
    """A rule as people read it: `blocks\\.\\d+\\.ls1\\.gamma` is blocks.N.ls1.gamma."""
    return re.sub(r"\([^()]*\)\?", "", rule).replace(r"\d+", "N").replace("\\", "")
