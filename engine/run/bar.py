"""A progress bar for long work: `for file in track(files, "checking", len(files)): ...`.

It appears on stderr after one second, so quick work shows none. If stderr is not a terminal, one line in the log
reports the end of the work.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds before the bar appears
T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items` (`total` of them) and show the progress of `what`."""
    started, bar, done = time.perf_counter(), None, 0
    try:
        for done, item in enumerate(items, start=1):
            yield item
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
            elif time.perf_counter() - started > PATIENCE and done < total and sys.stderr.isatty():
                bar = _bar(what, total, done)
    finally:
        if bar is not None:
            bar.stop()
    if (seconds := time.perf_counter() - started) > PATIENCE:
        log.info("%s: %d in %.1f s", what, done, seconds)


def _bar(what: str, total: int, done: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(what, total=total, completed=done)
    bar.start()
    return bar
