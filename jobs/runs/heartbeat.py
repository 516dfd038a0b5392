"""Something done every few seconds while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, work: Callable[[], None], name: str) -> Iterator[None]:
    """Within, a thread called `name` does `work` each time so many seconds have gone by; it must not raise."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=beat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
