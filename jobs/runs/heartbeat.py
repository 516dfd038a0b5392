"""Do something every few seconds in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, work: Callable[[], None], name: str) -> Iterator[None]:
    """Call `work`, which must not raise, every `seconds` in a thread called `name` within the block."""
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
