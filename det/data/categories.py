"""Whether two lists of categories mean the same: those of both splits, of a detector and of the data it is tried on.

    for finding in category_findings(named(train), named(val)): ...

A label is a category's id, so that one id with two names is two meanings for one label.
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
    """Names by id, and where they are from: a file, for a message."""

    file: str
    names: Mapping[int, str]

    @classmethod
    def of(cls, file: str, ids: Sequence[int], names: Sequence[str]) -> Categories:
        """The categories `ids` and their `names`."""
        return cls(file, dict(zip(ids, names, strict=True)))


def category_findings(one: Categories, other: Categories) -> Iterator[Finding]:
    """Errors where ids of one are missing in the other or have another name; a warning where spelling differs."""
    for here, there in ((other, one), (one, other)):
        if missing := sorted(set(there.names) - set(here.names)):
            what = f"lacks categories that {_base(there.file)} has (ids {missing[:SHOWN]})"
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
        what = f"spells category {identity} {other.names[identity]!r}, and {_base(one.file)} {one.names[identity]!r}"
        yield Finding("warning", other.file, what, "they are taken for the same")


def _remedy(here: Categories, there: Categories) -> str:
    names = [sorted(map(_folded, each.names.values())) for each in (here, there)]
    if names[0] == names[1]:
        return "the names are the same under other ids: number them as in one of the files"
    return "both must list the same categories, even those without objects"


def _base(file: str) -> str:
    return file.rpartition("/")[2]


def _folded(name: str) -> str:
    """A name regardless of case, of how accents are encoded, and of what separates words."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()
