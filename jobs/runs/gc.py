"""Remove files that no result needs: `mimbench gc`.

    checkpoints   of runs that are done: their results, logs and encoders stay
    features      <root>/.features, recomputed when a probe needs them; kept while any run is running
    snapshots     <root>/.mimbench/code, unless a queued, running or unfinished run was submitted with it
    leftovers     temporary files of killed writers, at least a day old

Prints first how many bytes each frees; removes only after a confirmation.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.states import States

DAY = 86400.0


@dataclass(frozen=True)
class Waste:
    """A directory or file that can be removed."""

    kind: str
    path: Path
    bytes: int


def waste(root: Path) -> list[Waste]:
    """Return everything under `root` that can be removed."""
    runs, states = [RunDir(file.parent) for file in sorted(root.glob("*/*/run.json"))], States(root)
    known = {run: states.look(run)[0] for run in runs}
    found = [_waste("checkpoints", run.checkpoints) for run, state in known.items() if state == "done"]
    if "running" not in known.values():
        found += [_waste("features", folder) for folder in sorted((root / ".features").glob("*"))]
    used = {snapshot for run, state in known.items() if state != "done" for snapshot in _snapshot(run)}
    found += [
        _waste("snapshots", folder)
        for folder in sorted((root / ".mimbench" / "code").glob("*"))
        if str(folder.absolute()) not in used and time.time() - folder.stat().st_mtime > DAY
    ]
    found += [_waste("leftovers", file) for run, state in known.items() if state != "running" for file in _old(run)]
    return [one for one in found if one.path.exists() and (one.bytes or one.kind == "leftovers")]


def _snapshot(run: RunDir) -> Iterator[str]:
    """Yield the snapshot of the code that the run was submitted with."""
    if (run.path / "submission.json").exists():
        from mimbench.jobs.slurm import submission

        noted = submission.read(run)
        if noted is not None and noted.snapshot:
            yield str(Path(noted.snapshot).absolute())


def _old(run: RunDir) -> Iterator[Path]:
    for file in run.path.rglob(".*.tmp"):
        if time.time() - file.stat().st_mtime > DAY:
            yield file


def _waste(kind: str, path: Path) -> Waste:
    return Waste(kind, path, size(path))


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files under a directory; links are not followed."""
    if not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def remove(found: Sequence[Waste]) -> int:
    """Remove the files and return the bytes freed.

    Checkpoints of a run that was started in the meantime are kept: they are in use again.

    Raises:
        OSError: naming the file that cannot be removed; files before it are already removed.
    """
    freed = 0
    for one in found:
        if one.kind == "checkpoints" and not RunDir(one.path.parent).result.exists():
            continue
        if one.path.is_dir():
            shutil.rmtree(one.path)
        else:
            one.path.unlink(missing_ok=True)
        freed += one.bytes
    return freed


def render(found: Sequence[Waste], root: Path) -> str:
    """Return a line for each, largest first, and the sum of each kind."""
    lines = [
        f"{in_words(one.bytes):>10}  {one.kind:<11}  {one.path.relative_to(root)}"
        for one in sorted(found, key=lambda one: -one.bytes)
    ]
    kinds = dict.fromkeys(one.kind for one in found)
    sums = ", ".join(f"{in_words(sum(o.bytes for o in found if o.kind == kind))} of {kind}" for kind in kinds)
    return "\n".join(
        [*lines, f"total {in_words(sum(one.bytes for one in found))}: {sums}" if found else "nothing to remove"]
    )


def in_words(count: int) -> str:
    """Return bytes in a readable unit."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
