"""Locks between processes, on this machine or on others that share a file system, NFS included.

    with lock(root / ".mimbench" / "submit", wait=60):
        ...

The lock is a file that names its holder: host, process and start. It is taken with a hard link, which only one of
several hosts can create; on NFS the link itself is checked, not the server's reply. While the lock is held, its time is
renewed. A lock without a living holder is broken: at once if its process was on this host, else after a minute without
renewal by the file server's clock.
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

BEAT = 10.0  # seconds between renewals by the holder
SILENCE = 60.0  # seconds without renewal after which a holder on another host counts as dead
POLL = 0.1  # seconds between two tries
LONGEST = 120.0  # seconds to wait for another submission under the same root


@contextmanager
def lock(path: Path, wait: float = 60.0) -> Iterator[None]:
    """Hold the lock at `path` within the block; no other process can hold it.

    Raises:
        ValueError: if another process, which it names, still holds it after `wait` seconds.
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
            if _holder(path).get("token") == mine.name:  # else the lock was broken and another process has it
                path.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


@contextmanager
def starting_runs(root: Path) -> Iterator[None]:
    """Hold the lock for starting runs under `root` within the block.

    Raises:
        ValueError: if another process, which it names, holds it for two minutes.
    """
    with lock(root / ".mimbench" / "submit.lock", wait=LONGEST):
        yield


def _wait_for(path: Path, mine: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while not _linked(path, mine):
        holder = _holder(path)
        if holder and _is_gone(path, holder, mine):
            _break(path, holder, mine)
        elif time.monotonic() > deadline:
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            raise ValueError(f"{path} is locked by {who}; wait for that process or end it")
        else:
            time.sleep(POLL)


def _linked(path: Path, mine: Path) -> bool:
    """Return whether `path` is now a link to `mine`. If a reply is lost, a created link may be reported as failed."""
    with suppress(FileExistsError):
        os.link(mine, path)
    return mine.stat().st_nlink == 2


def _holder(path: Path) -> dict[str, Any]:
    """Return the holder that the lock names; empty if it is free."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _is_gone(path: Path, holder: dict[str, Any], mine: Path) -> bool:
    if holder["host"] == socket.gethostname():
        started = process_started(holder["pid"])
        return started is None or abs(started - holder["process_started"]) > 0.05
    os.utime(mine)  # by the server's clock, like the holder's renewals
    try:
        return mine.stat().st_mtime - path.stat().st_mtime > SILENCE
    except FileNotFoundError:
        return False


def _break(path: Path, holder: dict[str, Any], mine: Path) -> None:
    """Remove the lock of a dead holder; of several processes that try, only one does."""
    guard = path.with_name(f"{holder['token']}.broken")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        with suppress(FileNotFoundError):
            if mine.stat().st_mtime - guard.stat().st_mtime > SILENCE:  # the process that tried is dead as well
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
