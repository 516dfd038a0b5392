"""The splits of data sets, and which version of `handwritten` is written; nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "val"]

SPLITS: tuple[Split, Split] = ("train", "val")
HANDWRITTEN_VERSION = 3  # names the folder in the cache: raise it when the generator writes other files
