"""A lock for processes of one machine that would do the same work at once; for several machines: jobs/runs/lock.py.

The kernel releases it when its holder ends, however that ends, so no lock is ever stale. filelock is not used: where a
file system knows no flock it turns to a marker file, which a killed process leaves behind for all that come after.
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
    """Hold the lock at `path` within, after waiting for another process that has it.

    Where locks are not supported (some network file systems) a line says so, and nobody waits: what is done within must
    be sound, if wasteful, when two do it.

    Args:
        path: of the lock's file, which stays; its folder is made.
        doing: what a holder does, for the line that says what is waited for, as in "writing the data set".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that is %s", doing)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.info("%s cannot be locked (%s)", path.parent, os.strerror(error.errno or 0))
        yield
