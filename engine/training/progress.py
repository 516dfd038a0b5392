"""Training progress for people: a live bar on a terminal, otherwise a plain log line every 10 seconds.

crossmae  ━━━━━━━━━━━━╸      1200/2000  loss 0.5123  1,210 img/s  0:01:24 left  412 MiB
"""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from mimbench.engine.run.bar import make_room

log = logging.getLogger(__name__)

REDRAW = 0.2  # seconds between two drawings of the bar
SPEAK = 10.0  # seconds between two plain lines


class Display:
    """The progress bar, or the progress lines, of one run."""

    def __init__(self, title: str, steps: int, done: int, console: Console | None = None) -> None:
        self.title, self.steps = title, steps
        self._drawn = self._spoken = time.monotonic()
        console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            figures = TextColumn("{task.fields[text]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), figures)
            make_room()
            self._bar = Progress(*columns, console=console, auto_refresh=False)
            self._task = self._bar.add_task(title, total=steps, completed=done, text="")
            self._bar.start()

    def advance(self, done: int) -> None:
        """Redraw the bar if `REDRAW` seconds have passed; called after each step."""
        now = time.monotonic()
        if self._bar is not None and now - self._drawn >= REDRAW:
            self._bar.update(self._task, completed=done, refresh=True)
            self._drawn = now

    def report(self, done: int, loss: float, rate: float, left: float, memory: int, waiting: float) -> None:
        """Show new figures: mean loss, images per second, seconds left, peak bytes of memory, and the share of the time
        spent waiting for data if it is 1 % or more.
        """
        text = f"loss {loss:.4f}  {rate:,.0f} img/s  {duration(left)} left  {memory / 2**20:,.0f} MiB"
        if waiting >= 0.01:
            text += f"  {waiting:.0%} waiting for data"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text, refresh=True)
        elif done == self.steps or time.monotonic() - self._spoken >= SPEAK:
            log.info("%s  %d/%d  %s", self.title, done, self.steps, text)
            self._spoken = time.monotonic()

    def say(self, text: str) -> None:
        """Show a separate line, above the bar if there is one."""
        log.info("%s  %s", self.title, text)
        if self._bar is not None:
            self._bar.console.print(f"{self.title}  {text}", highlight=False)

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Return `seconds` as `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
