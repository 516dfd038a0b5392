"""Compare two lists of categories: of both splits, or of a detector and the data it is evaluated on.

    for finding in category_findings(named(train), named(val)): ...

A label is a category's id, so one id with two names would give one label two meanings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mimbench.engine.data.datasets import Finding

SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class Categories:
    """Names by id, and their file, for messages."""

    file: str
    names: Mapping[int, str]

    @classmethod
    def of(cls, file: str, ids: Sequence[int], names: Sequence[str]) -> Categories:
        """Return the categories `ids` with `names`."""
        return cls(file, dict(zip(ids, names, strict=True)))


def category_findings(one: Categories, other: Categories) -> Iterator[Finding]:
    """Yield errors for ids that are missing in one list or have another name; warnings for different spelling."""
    for here, there in ((other, one), (one, other)):
        if missing := sorted(set(there.names) - set(here.names)):
            what = f"does not have all categories of {_base(there.file)} (missing ids {missing[:SHOWN]})"
            yield Finding("error", here.file, what, _remedy(here, there))
    both = sorted(set(one.names) & set(other.names))
    renamed = [identity for identity in both if _folded(one.names[identity]) != _folded(other.names[identity])]
    if renamed:
        identity = renamed[0]
        more = f" (and {len(renamed) - 1:,} more)" if len(renamed) > 1 else ""
        what = f"category {identity} is {other.names[identity]!r}, but {one.names[identity]!r} in {one.file}{more}"
        yield Finding("error", other.file, what, "give each category one id and one name in both files")
    respelt = [identity for identity in both if one.names[identity] != other.names[identity]]
    if respelt and not renamed:
        identity = respelt[0]
        what = f"spells category {identity} {other.names[identity]!r}, {_base(one.file)} {one.names[identity]!r}"
        yield Finding("warning", other.file, what, "they are treated as the same category")


def _remedy(here: Categories, there: Categories) -> str:
    names = [sorted(map(_folded, each.names.values())) for each in (here, there)]
    if names[0] == names[1]:
        return "the same names have other ids: use the same ids in both files"
    return "list the same categories in both, even those without objects"


def _base(file: str) -> str:
    return file.rpartition("/")[2]


def _folded(name: str) -> str:
    """Return a name without differences in case, accent encoding and word separators."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()
