"""Files that are either the old one or the new one, never half of one.

Everything a run leaves behind is written here: to a temporary name in the same directory, flushed to disk,
then renamed. A full disk or a kill leaves the previous file as it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NEARLY_FULL = 1 << 20  # bytes: a writer that failed with less than this free failed for want of it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on a clean exit it is flushed and renamed over `path`.

    Raises:
        OSError: with `path` as the file name; also in place of whatever a library raised because the disk was full.
    """
    with _temporary(path) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_directory(path.parent)


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` with what `write(temporary_path)` writes."""
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` (UTF-8)."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; NaN and infinities are refused, for JSON has none."""
    write_text(path, _json(value))


def claim_json(path: Path, value: Any) -> None:
    """Write `value` to `path` if nobody has: of several processes that try at once, here or over NFS, one succeeds.

    Raises:
        FileExistsError: for all the others.
    """
    with _temporary(path) as temporary:
        temporary.write_text(_json(value), encoding="utf-8")
        _flush(temporary)
        os.link(temporary, path)
        _flush_directory(path.parent)


def sweep(directory: Path) -> None:
    """Remove what writers that were killed left under `directory`; for the one process that may write there."""
    for leftover in directory.rglob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    except OSError as error:
        if error.errno is None:  # some libraries raise OSError("in words")
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:  # torch says RuntimeError, safetensors an error of its own
        if isinstance(error, ValueError) or shutil.disk_usage(path.parent).free > NEARLY_FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _flush_directory(directory: Path) -> None:
    """Make a rename survive a power cut, where the file system can promise that for directories."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # SMB and some FUSE mounts refuse; the file itself is safe by then
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
