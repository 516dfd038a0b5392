"""Training states on disk: written whole or not at all, checked before use, opened without running code.

    checkpoints/step-00000500.pt    a zip file in torch's format; its checksums reveal damage

A state is nested dictionaries and lists of tensors, numbers and strings; it is read with torch's safe loader.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
import zipfile
import zlib
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mimbench.engine.run.atomic import replacing
from mimbench.engine.run.process import announced, rank_and_world

log = logging.getLogger(__name__)

WAIT = 90.0  # seconds; with usual mount options NFS shows a new file after at most 60


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` atomically: on failure, `path` keeps its previous content.

    Raises:
        OSError: naming `path`; the previous file is untouched and no other file is left behind.
    """
    # without a buffer: processes forked while a thread writes here must not hold a part of the file to write again
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as handle:
        sink = _Sink(handle)
        torch.save(state, sink)  # type: ignore[arg-type]
        if sink.error:
            raise sink.error


class _Sink:
    """Stores the first write error. torch would turn an error raised inside it into an unreadable abort."""

    def __init__(self, handle: RawIOBase) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self.handle.write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


def load_state(path: Path) -> dict[str, Any]:
    """Return the state in `path`, on the CPU: its tensors are views of the file, which is read where they are used.

    Changing a tensor changes its own copy, never the file. Damage is not noticed: see `newest_valid`.

    Raises:
        ValueError: if the file is damaged, or holds anything but tensors and plain values.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        why = str(error).partition("\n")[0] or "the file is truncated"
        raise ValueError(f"{path} is not a training state: {why}") from error
    return state


def state_path(directory: Path, step: int) -> Path:
    """Return the path of the state after `step` optimiser steps."""
    return directory / f"step-{step:08d}.pt"


def newest_valid(directory: Path) -> Path | None:
    """Return the newest undamaged state; damaged ones are skipped with a log line. None if there is none."""
    for path in _states(directory):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("skipping the damaged checkpoint %s: %s", path, fault)
    return None


def load_newest(directory: Path, wait: float = WAIT) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest undamaged state and its file, the same in all processes of a run; None if there is none.

    The first process chooses, and the others use its choice: each alone might see an older file, on a file system that
    caches listings or on a local disk. They wait up to `wait` seconds for a file with the same bytes.

    Raises:
        ValueError: in all processes, if one cannot read the file that the first has chosen.
    """
    rank, world = rank_and_world()
    newest = newest_valid(directory) if rank == 0 else None
    if world == 1:
        return None if newest is None else (newest, load_state(newest))
    chosen = announced(None if newest is None else (newest.name, _checksums(newest)))
    if chosen is None:
        return None
    name, checksums = chosen
    path = directory / name
    faults: list[str | None] = [None] * world
    dist.all_gather_object(faults, _other(path, checksums, wait, check=rank > 0))
    if (failed := next((rank for rank, fault in enumerate(faults) if fault), None)) is not None:
        raise ValueError(
            f"process {failed} {faults[failed]} {path}, from which process 0 resumes: run directories must be on a "
            "file system that all nodes share; start again once all nodes see the same file"
        )
    return path, load_state(path)


def _other(path: Path, checksums: str, wait: float, *, check: bool) -> str | None:
    """Return the fault if `path` does not list these checksums within `wait` seconds; None if it does.

    With `check`, its content must match them too. Rank 0 has checked its own already, so every rank reads it once.
    """
    end = time.monotonic() + wait
    while True:
        _states(path.parent)  # makes a network file system refresh its listing
        found = _checksums(path) if path.is_file() else None
        if found == checksums and not (check and _fault(path)):
            return None
        if time.monotonic() >= end:
            return "does not see" if found is None else "reads different bytes in"
        time.sleep(min(1.0, wait))


def _checksums(path: Path) -> str:
    """Return a digest of the names, sizes and checksums that the file lists at its end; "" if it is damaged there."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
    except (zipfile.BadZipFile, EOFError, OSError):
        return ""
    return hashlib.blake2b(repr(listed).encode(), digest_size=16).hexdigest()


def _fault(path: Path) -> str | None:
    """Return what is wrong with the file; None if all its checksums match."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return str(error)
    return None if bad is None else f"the checksum of {bad} does not match"


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` states."""
    for path in _states(directory)[keep:]:
        path.unlink(missing_ok=True)


def steps_saved(directory: Path) -> list[int]:
    """Return the optimiser steps of the states saved in `directory`, newest first."""
    return [int(path.stem.removeprefix("step-")) for path in _states(directory)]


def _states(directory: Path) -> list[Path]:
    """Return all states, newest first."""
    return sorted(directory.glob("step-*.pt"), reverse=True)
