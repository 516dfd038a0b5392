"""A lock between processes of one machine that may do the same work; for several machines: jobs/runs/lock.py.

The kernel releases the lock when its holder ends, even if killed, so no lock is ever stale. filelock is not used: on a
file system without flock it falls back to a marker file, which a killed process leaves behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock at `path` inside the `with` block, after waiting for the process that holds it.

    If locks are not supported (some network file systems), a log line says so and nobody waits: the work in the block
    must then stay correct, if wasteful, when two processes do it.

    Args:
        path: the lock's file, which is kept; its folder is created.
        doing: the holder's work, for the log line of a waiting process: "writing the data set".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that is %s", doing)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.info("%s does not support locks (%s); continuing without", path.parent, os.strerror(error.errno or 0))
        yield
