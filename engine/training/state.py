"""Training states on disk: written whole or not at all, checked before use, opened without running code.

    checkpoints/step-00000500.pt    a zip file in torch's format; the checksums in it tell a damaged one

A state is nested dictionaries and lists of tensors, numbers and texts; it is read with torch's safe loader.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mimbench.engine.run.atomic import replacing

log = logging.getLogger(__name__)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` is either what it was before or all of it.

    Raises:
        OSError: naming `path`; what was there before is untouched and nothing else is left behind.
    """
    with replacing(path) as temporary, temporary.open("wb") as handle:
        sink = _Sink(handle)
        torch.save(state, sink)  # type: ignore[arg-type]
        if sink.error:
            raise sink.error


class _Sink:
    """Remembers the first error of writing. torch turns one raised under it into an unreadable abort."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.handle.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Left to the closing of the file."""


def load_state(path: Path) -> dict[str, Any]:
    """The state in `path`, on the CPU.

    Raises:
        ValueError: if it is damaged, or holds anything but tensors and plain values.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        why = str(error).partition("\n")[0] or "it ends too soon"
        raise ValueError(f"{path} is not a training state: {why}") from error
    return state


def state_path(directory: Path, step: int) -> Path:
    """Where the state after `step` optimiser steps goes."""
    return directory / f"step-{step:08d}.pt"


def newest_valid(directory: Path) -> Path | None:
    """The newest state that is whole; damaged ones are passed over, with a line in the log."""
    for path in _states(directory):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("passing over the checkpoint %s: %s", path, fault)
    return None


def _fault(path: Path) -> str | None:
    """What is wrong with the file, None if all its checksums hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return str(error)
    return None if bad is None else f"the checksum of {bad} does not hold"


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` states."""
    for path in _states(directory)[keep:]:
        path.unlink(missing_ok=True)


def steps_saved(directory: Path) -> list[int]:
    """The optimiser steps after which the states in `directory` were saved, newest first."""
    return [int(path.stem.removeprefix("step-")) for path in _states(directory)]


def _states(directory: Path) -> list[Path]:
    """All states, newest first."""
    return sorted(directory.glob("step-*.pt"), reverse=True)
