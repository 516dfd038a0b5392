"""Faults of many entries of one file as few findings: the first of each kind in full, the others as a count.

yield from grouped(faults)      # one Finding for each kind, in the order in which kinds are met
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mimbench.engine.data.datasets import Finding, Severity

NAMED = 9  # files of one kind, besides the first


class Fault(NamedTuple):
    """One thing wrong with one entry. Faults with the same `kind` and severity have the same cause."""

    kind: str
    file: str
    what: str
    remedy: str = ""
    severity: Severity = "error"


def grouped(faults: Iterable[Fault]) -> Iterator[Finding]:
    """One finding for each kind of fault, which says how many more there are, and names the first files of them."""
    of_kind: dict[tuple[Severity, str], list[Fault]] = {}
    for fault in faults:
        of_kind.setdefault((fault.severity, fault.kind), []).append(fault)
    for first, *rest in of_kind.values():
        files = [fault.file for fault in rest if fault.file != first.file]
        names = [Path(file).name for file in files[:NAMED]] + (["..."] if len(files) > NAMED else [])
        more = f" (and {len(rest):,} more like it{': ' if names else ''}{', '.join(names)})" if rest else ""
        yield Finding(first.severity, first.file, first.what + more, first.remedy)
