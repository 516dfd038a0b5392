"""The splits of data sets, and the version of `handwritten`; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "val"]

SPLITS: tuple[Split, Split] = ("train", "val")
HANDWRITTEN_VERSION = 3  # part of the folder's name in the cache: raise it when the generator's files change
