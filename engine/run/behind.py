"""Work in a thread beside the main one: `Behind` keeps the order and passes errors on.

behind = Behind[Found]()
for batch in batches:
    behind.add(partial(encode, batch))      # returns while the one before is worked on
results = behind.results()                  # in the order added; raises what a piece of work raised
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

WAITING = 2  # pieces of work that may wait, so that they do not fill the memory


class Behind(Generic[T]):
    """A thread that does one piece of work after another. Leaving the context waits for the piece in progress."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._pending: list[Future[T]] = []
        self._done: list[T] = []

    def __enter__(self) -> Behind[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, work: Callable[[], T]) -> None:
        """Have `work` done after all before it; waits while more than `WAITING` pieces are not done.

        Raises:
            Exception: that an earlier piece raised.
        """
        self._pending.append(self._thread.submit(work))
        self._take(WAITING)

    def results(self) -> list[T]:
        """Return the results of all work so far, in order.

        Raises:
            Exception: that a piece raised, the first of them.
        """
        self._take(0)
        return self._done

    def _take(self, waiting: int) -> None:
        while len(self._pending) > waiting:
            self._done.append(self._pending.pop(0).result())
