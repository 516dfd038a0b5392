"""Processes forked from a test program that die by SIGKILL at a chosen call."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

_attempt: list[int] = []  # the number of the process that is to die: not of one that loads its data


def forked(work: Callable[[], None]) -> int:
    """Do `work` in a process of its own, and return its number; it exits with 0 unless `work` raised."""
    if child := os.fork():
        return child
    status = 1
    _attempt[:] = [os.getpid()]
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def killed(child: int) -> bool:
    """Wait for a process: whether SIGKILL ended it, rather than its work being done.

    Raises:
        AssertionError: it failed.
    """
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"an attempt failed: {status}"
    return False


def die() -> None:
    """As the kernel or an impatient person would have it; a loading process kills the one it loads for."""
    os.kill(_attempt[0], signal.SIGKILL)
    time.sleep(60)  # only a loading process gets here, and it is ended by its parent's death


def dying(function: Callable[..., Any], call: int, *, after: bool = False) -> Callable[..., Any]:
    """`function`, killing the process at its call number `call` (1, 2, ...)."""
    calls = 0

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            die()
        result = function(*arguments, **keywords)
        if calls == call:
            die()
        return result

    return wrapped
