"""Summarise faults of many entries of a file: the first of each kind in full, the others as a count.

yield from grouped(faults)      # one Finding per kind, in the order of first occurrence
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mimbench.engine.data.datasets import Finding, Severity

NAMED = 9  # files of one kind, besides the first


class Fault(NamedTuple):
    """One fault of one entry. Faults with the same `kind` and severity have the same cause."""

    kind: str
    file: str
    what: str
    remedy: str = ""
    severity: Severity = "error"


def grouped(faults: Iterable[Fault]) -> Iterator[Finding]:
    """Yield one finding per kind of fault, with the number of further faults and their first files."""
    of_kind: dict[tuple[Severity, str], list[Fault]] = {}
    for fault in faults:
        of_kind.setdefault((fault.severity, fault.kind), []).append(fault)
    for first, *rest in of_kind.values():
        files = [fault.file for fault in rest if fault.file != first.file]
        names = [Path(file).name for file in files[:NAMED]] + (["..."] if len(files) > NAMED else [])
        more = f" (and {len(rest):,} more like it{': ' if names else ''}{', '.join(names)})" if rest else ""
        yield Finding(first.severity, first.file, first.what + more, first.remedy)
