"""A checkpoint family: how to recognise and read the files of one pretraining method or library.

A family is one entry of `families.FAMILIES`. Names below are regular expressions that must match a whole key. The steps
for each key:

    1. wrappers that all encoder keys share (`module.`, `model.`, `backbone.`, `encoder.` ...) are removed (`match`)
    2. `signature` and `dropped` are matched against these names
    3. `prefix` is removed; a key without it that is not dropped is suspicious
    4. `renames` are applied in order; a replacement may use groups (`\\1`)
    5. `convert` makes the changes that renaming cannot express

The result must be exactly the encoder that the shapes and `traits` describe; otherwise loading stops and names the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from mimbench.backbones.config import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Traits

HALF = (0.5, 0.5, 0.5)  # the mean and standard deviation of Google's ViTs

Positions = Literal["sincos", "learned", "relative", "rope", "none"]
Converted = tuple[dict[str, Tensor], dict[str, str]]  # the tensors, and {new key: how it was converted}


@dataclass(frozen=True)
class Signature:
    """The keys that a file of the family has, and those it never has."""

    has: tuple[str, ...] = ()  # each must match some key
    any: tuple[str, ...] = ()  # at least one must match some key
    never: tuple[str, ...] = ()  # none may match any key

    def __len__(self) -> int:
        """Return the number of its rules."""
        return len(self.has) + bool(self.any) + len(self.never)

    def differences(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Return the reasons why `keys` do not belong to the family, a phrase each; empty if they do."""
        found = list(keys)
        faults = [f"has no {_plain(rule)}" for rule in self.has if not _first(rule, found)]
        if self.any and not any(_first(rule, found) for rule in self.any):
            faults.append(f"has none of {', '.join(_plain(rule) for rule in self.any)}")
        unwanted = (_first(rule, found) for rule in self.never)
        return (*faults, *(f"has {key}" for key in unwanted if key))


WIDE = {1280: 16, 1408: 16, 1664: 16, 1792: 16}  # heads of ViT-H, g, G and e: 80, 88, 104 and 112 channels each
SIZES = frozenset({(192, 12), (384, 12), (768, 12), (1024, 24), (1280, 32), (1408, 40), (1664, 48), (1792, 56)})


def papers_heads(width: int) -> int:
    """Return the number of heads, which weights do not tell: 64 channels per head in most papers, more in `WIDE`.

    Raises:
        ValueError: if the width is not a multiple of 64.
    """
    if width % 64:
        raise ValueError(
            f"width {width} does not tell the number of heads; papers use 64 channels per head. Add heads=N"
        )
    return WIDE.get(width, width // 64)


def table_grid(weights: Mapping[str, Tensor]) -> int:
    """Return the patches along one side of a pretraining image, from the rows of `pos_embed`.

    If the number of rows n is a square (196 = 14 x 14), there is no class token's row; if n - 1 is a square, there is.

    Raises:
        ValueError: if there is no table of three axes, or it does not fit a square grid.
    """
    if "pos_embed" not in weights or weights["pos_embed"].ndim != 3:
        raise ValueError("pos_embed is missing or has not 3 axes")
    rows = weights["pos_embed"].shape[1]
    side = math.isqrt(rows)
    if rows < 1 or rows - side * side > 1:
        raise ValueError(f"pos_embed has {rows} rows, which is not a square grid with or without a class token")
    return side


def always(_weights: Mapping[str, Tensor]) -> bool:
    """Return True: the names alone identify the family."""
    return True


def never_shown(_weights: Mapping[str, Tensor]) -> None:
    """Return None: the weights do not tell the number of heads."""


def plain_traits(_weights: Mapping[str, Tensor]) -> Traits:
    """Return the traits of MAE's plain ViT."""
    return Traits()


@dataclass(frozen=True)
class Family:
    """One family of checkpoints. The module docstring gives the order of the steps."""

    name: str  # "mae": in reports, results and the metadata of our files
    title: str  # "MAE (He et al., 2022)"
    signature: Signature
    source: str  # the paper or repository of these files
    prefix: str = ""  # prefix of the encoder's keys: "base_encoder.", "visual."
    renames: tuple[tuple[str, str], ...] = ()  # (regex, replacement), searched anywhere in the key
    convert: Callable[[dict[str, Tensor]], Converted] | None = None  # takes and returns only the encoder's tensors
    dropped: tuple[tuple[str, str], ...] = ()  # (regex, what it is): "decoder", "teacher", "head", "mask token"
    missing: tuple[str, ...] = ()  # keys of the encoder that may be absent
    unfit: tuple[tuple[str, str], ...] = ()  # (regex, why): known in the family, but not part of the encoder
    final_norm: Literal["as found", "none"] = "as found"
    positions: Positions = "sincos"
    interpolation: Interpolation = "bicubic"  # how the family's own protocol resizes positions
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of its pretraining images, for values in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    notes: tuple[str, ...] = ()  # assumptions about what the file does not tell, for the report
    # for files whose keys fit two encoders, or do not tell everything (`recognise`, `stated`):
    rivals: tuple[str, ...] = ()  # names of families with other arithmetic and the same keys and shapes
    wrapper: str = ""  # the key that holds the weights in this family's own files, but not in a rival's: "model"
    models: str = ""  # (regex) names of its models, in timm or in its authors' code
    sizes: frozenset[tuple[int, int]] = SIZES  # (width, depth) with published heads; others' heads are assumed
    unsure: tuple[
        str, ...
    ] = ()  # of "heads", "activation", "norm_eps", "mean", "std", "grid": what its files do not tell
    fits: Callable[[Mapping[str, Tensor]], bool] = always  # a test beyond the names: shapes, the kind of a table
    # these take the encoder's tensors after `renames` and `convert`:
    heads: Callable[[int], int] = papers_heads  # from the width
    shown_heads: Callable[[Mapping[str, Tensor]], int | None] = (
        never_shown  # where the weights tell, instead of `heads`
    )
    grid: Callable[[Mapping[str, Tensor]], int] = table_grid  # patches along one side of a pretraining image
    traits: Callable[[Mapping[str, Tensor]], Traits] = plain_traits


@lru_cache(maxsize=1024)
def compiled(rule: str) -> re.Pattern[str]:
    """Return the compiled form of a rule."""
    return re.compile(rule)


def matches(rule: str, key: str) -> bool:
    """Whether `rule` matches the whole of `key`."""
    return compiled(rule).fullmatch(key) is not None


def _first(rule: str, keys: list[str]) -> str | None:
    return next((key for key in keys if matches(rule, key)), None)


def _plain(rule: str) -> str:
    """Return a rule as people read it: `blocks\\.\\d+\\.ls1\\.gamma` is blocks.N.ls1.gamma."""
    return re.sub(r"\([^()]*\)\?", "", rule).replace(r"\d+", "N").replace("\\", "")
