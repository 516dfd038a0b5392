"""Show on stderr that long work goes on: a bar that moves from the first second on.

    for file in track(files, "checking", len(files)): ...      # items of known number
    with working("reading vit.pth"): ...                        # work of unknown length

A thread draws, so the bar also moves while torch is imported or one item takes minutes. On a terminal `working` draws
at once, before torch is imported, and `track` after `PATIENCE` seconds, so quick loops show none. If stderr is not a
terminal, `working` prints one line after `PATIENCE` seconds, and `track` logs the end of the work. Imports nothing
heavy: a bar of rich appears too late.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

log = logging.getLogger(__name__)

PATIENCE = 0.5  # seconds before a bar appears, or a line if stderr is not a terminal
REPORTED = 1.0  # seconds of work of which the log tells
REDRAW = 0.1  # seconds between two drawings
WIDTH = 24  # of the bar, in characters
T = TypeVar("T")


@dataclass
class _Work:
    what: str
    total: int | None = None
    patience: float = 0.0  # seconds before it is shown
    done: int = 0
    hidden: bool = False
    announced: bool = False  # on a stream that is not a terminal
    started: float = field(default_factory=time.perf_counter)


class _Line:
    """The last line of the terminal. It shows the innermost piece of work that goes on."""

    def __init__(self) -> None:
        self._works: list[_Work] = []
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = False

    def push(self, work: _Work) -> None:
        """Show this piece of work from now on."""
        with self._lock:
            self._works.append(work)
            if work.total is not None and not _stream().isatty():
                return  # the log tells the end of it
            if not work.patience:
                self._draw(work)
            if self._thread is None or not self._thread.is_alive():
                self._idle.clear()
                self._thread = threading.Thread(target=self._draw_always, name="progress", daemon=True)
                self._thread.start()

    def pop(self, work: _Work) -> None:
        """Show the work around this piece again."""
        with self._lock:
            self._works.remove(work)
            self._erase()
            if not self._works:
                self._idle.set()
                self._thread = None

    def hide(self) -> None:
        """Show none of the present work any more."""
        with self._lock:
            for work in self._works:
                work.hidden = True
            self._erase()

    def _draw_always(self) -> None:
        mine = threading.current_thread()
        while self._thread is mine and not self._idle.wait(REDRAW):
            with self._lock:
                if self._thread is mine and self._works:
                    self._draw(self._works[-1])

    def _draw(self, work: _Work) -> None:
        seconds = time.perf_counter() - work.started
        if work.hidden or seconds < work.patience:
            return
        stream = _stream()
        with suppress(OSError, ValueError):  # closed, or nobody reads it
            if stream.isatty():
                stream.write(f"\r{_text(work, seconds)}\x1b[K")
                stream.flush()
                self._drawn = True
            elif work.total is None and not work.announced:
                work.announced = True
                print(f"{work.what} ...", file=stream, flush=True)

    def _erase(self) -> None:
        if self._drawn:
            with suppress(OSError, ValueError):
                _stream().write("\r\x1b[K")
                _stream().flush()
            self._drawn = False


_LINE = _Line()


def _stream() -> TextIO:
    """Return stderr itself, if rich has put a proxy in its place that waits for whole lines."""
    stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return stream


def _text(work: _Work, seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    clock = f"{minutes}:{rest:02}"
    if work.total:
        filled = min(WIDTH, WIDTH * work.done // work.total)
        bar, count = "━" * filled + "─" * (WIDTH - filled), f"{work.done:,}/{work.total:,}  "
        if work.done:
            minutes, rest = divmod(int(seconds * (work.total - work.done) / work.done), 60)
            clock = f"{clock}, {minutes}:{rest:02} left"
    else:
        place = int(seconds / REDRAW) % (2 * WIDTH)
        place = min(place, 2 * WIDTH - place - 1)
        bar, count = "─" * place + "━" + "─" * (WIDTH - place - 1), ""
    tail = f"  {bar}  {count}{clock}"
    room = shutil.get_terminal_size().columns - len(tail) - 1
    return (work.what if len(work.what) <= room else f"{work.what[: max(0, room - 1)]}…") + tail


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show within the block that `what` goes on, for an unknown time."""
    at_once = _stream().isatty() and _stream() is sys.stderr  # not above another display
    work = _Work(what, patience=0.0 if at_once else PATIENCE)
    _LINE.push(work)
    try:
        yield
    finally:
        _LINE.pop(work)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items` (`total` of them) and show the progress of `what`."""
    work = _Work(what, total, PATIENCE)
    _LINE.push(work)
    try:
        for item in items:
            yield item
            work.done += 1
    finally:
        _LINE.pop(work)
    if (seconds := time.perf_counter() - work.started) > REPORTED:
        log.info("%s: %d in %.1f s", what, work.done, seconds)


def make_room() -> None:
    """Erase the bar of all present work, because another display takes the terminal's last lines."""
    _LINE.hide()
