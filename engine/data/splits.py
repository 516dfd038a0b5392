"""The splits of data sets, and the version of `handwritten`; imports nothing heavy."""

from __future__ import annotations

import re
from typing import Literal

Split = Literal["train", "val"]

SPLITS: tuple[Split, Split] = ("train", "val")
HANDWRITTEN_VERSION = 3  # part of the folder's name in the cache: raise it when the generator's files change
WORDS: dict[Split, re.Pattern[str]] = {  # what tells the split in the name of a shard, in lower case
    "train": re.compile(r"(^|[^a-z])train([^a-z]|ing|$)"),
    "val": re.compile(r"(^|[^a-z])(val|validation|valid)([^a-z]|$)"),
}
