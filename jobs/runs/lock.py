"""Locks between processes, on this machine or on others that share a file system, NFS included.

    with lock(root / ".mimbench" / "submit", wait=60):
        ...

The lock is a file that says who holds it: host, process, when that began. It is taken with a hard link, which of
several hosts one makes; that an NFS server did so counts, not what it answered. While it is held its time is renewed.
A lock whose holder is gone is broken: at once where the process was of this host, after a minute of silence else, by
the file server's clock.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import process_started
from mimbench.jobs.runs.heartbeat import every

BEAT = 10.0  # seconds between two signs of life of a holder
SILENCE = 60.0  # seconds without one after which a holder on another host is taken for gone
POLL = 0.1  # seconds between two tries


@contextmanager
def lock(path: Path, wait: float = 60.0) -> Iterator[None]:
    """Within, no other process holds the lock at `path`.

    Raises:
        ValueError: naming who holds it, after `wait` seconds of waiting for it.
        OSError: if the lock's file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    me = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": process_started(os.getpid())}
    try:
        mine.write_text(json.dumps({**me, "token": mine.name}), encoding="utf-8")
        _wait_for(path, mine, wait)
        try:
            with every(BEAT, partial(_renew, mine), "lock"):
                yield
        finally:
            if _holder(path).get("token") == mine.name:  # else it was taken for gone, and another has it
                path.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def _wait_for(path: Path, mine: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while not _linked(path, mine):
        holder = _holder(path)
        if holder and _is_gone(path, holder, mine):
            _break(path, holder, mine)
        elif time.monotonic() > deadline:
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            raise ValueError(f"{path} is held by {who}: wait for it, or end it")
        else:
            time.sleep(POLL)


def _linked(path: Path, mine: Path) -> bool:
    """Whether `path` is now a link to `mine`. A link that was made may be reported as failed when a reply is lost."""
    with suppress(FileExistsError):
        os.link(mine, path)
    return mine.stat().st_nlink == 2


def _holder(path: Path) -> dict[str, Any]:
    """What the lock says of who holds it; nothing when it is free."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _is_gone(path: Path, holder: dict[str, Any], mine: Path) -> bool:
    if holder["host"] == socket.gethostname():
        started = process_started(holder["pid"])
        return started is None or abs(started - holder["process_started"]) > 0.05
    os.utime(mine)  # by the server's clock, as the holder's signs of life are
    try:
        return mine.stat().st_mtime - path.stat().st_mtime > SILENCE
    except FileNotFoundError:
        return False


def _break(path: Path, holder: dict[str, Any], mine: Path) -> None:
    """Take the lock of a holder that is gone away; of several that try, one does, and only that holder's."""
    guard = path.with_name(f"{holder['token']}.broken")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        with suppress(FileNotFoundError):
            if mine.stat().st_mtime - guard.stat().st_mtime > SILENCE:  # who tried is gone as well
                guard.unlink()
        time.sleep(POLL)
        return
    try:
        if _holder(path).get("token") == holder["token"]:
            path.unlink(missing_ok=True)
            path.with_name(holder["token"]).unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _renew(mine: Path) -> None:
    """Renew the lock's time; lock and `mine` are one file."""
    with suppress(OSError):
        os.utime(mine)
