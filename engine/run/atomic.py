"""Write files atomically: a file is either the old or the new one, never a part.

Everything a run leaves behind is written here: to a temporary name in the same directory, flushed to disk,
then renamed. A full disk or a kill leaves the previous file unchanged.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NEARLY_FULL = 1 << 20  # bytes: if a writer fails with less than this free, the disk is full


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on a clean exit it is flushed and renamed over `path`.

    Raises:
        OSError: with `path` as the file name; also if a library raised another error because the disk was full.
    """
    with _temporary(path) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_directory(path.parent)


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` with the file that `write(temporary_path)` writes."""
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` (UTF-8)."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; NaN and infinities are refused, because JSON lacks them."""
    write_text(path, _json(value))


def claim_json(path: Path, value: Any) -> None:
    """Write `value` to `path` unless it exists: if several processes try at once, locally or over NFS, one succeeds.

    Raises:
        FileExistsError: in all other processes.
    """
    with _temporary(path) as temporary:
        temporary.write_text(_json(value), encoding="utf-8")
        _flush(temporary)
        os.link(temporary, path)
        _flush_directory(path.parent)


def sweep(directory: Path) -> None:
    """Remove the temporary files of killed writers under `directory`; only its one writing process may call this."""
    for leftover in directory.rglob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def sweep_file(path: Path, age: float) -> None:
    """Remove the temporary files of writers of `path` that were killed more than `age` seconds ago."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > age:
                leftover.unlink()


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"  # on another host, or in a container, a process has the same number
    temporary = path.with_name(f".{path.name}.{mine}.tmp")
    try:
        yield temporary
    except OSError as error:
        if error.errno is None:  # some libraries raise OSError("text")
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:  # torch raises RuntimeError, safetensors its own error
        if isinstance(error, ValueError) or shutil.disk_usage(path.parent).free > NEARLY_FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _flush_directory(directory: Path) -> None:
    """Make a rename survive a power cut, if the file system supports that for directories."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # SMB and some FUSE mounts refuse; the file itself is already safe
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
