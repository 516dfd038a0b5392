"""Show the progress of a running study: a bar for every run on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.engine.run.bar import make_room
from mimbench.jobs.local.scheduled import Task
from mimbench.jobs.runs.watch import Watch, last_lines, summary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SPEAK = 30.0  # seconds between two plain lines of a run
LOG_LINES = 12  # lines of a failed run's log to show
STYLES = {
    "running": "cyan",
    "elsewhere": "cyan",
    "done": "green",
    "failed": "red",
    "left out": "red",
    "stopped": "yellow",
    "held": "yellow",
}


class Display:
    """Shows tasks on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        self._watches: dict[Path, Watch] = {}
        self._bars: list[tuple[Task, TaskID]] = []
        self._progress: Progress | None = None
        self._began = self._spoken = time.monotonic()

    @contextmanager
    def showing(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Show the tasks on the screen within the block."""
        self._began = self._spoken = time.monotonic()
        self._tasks = tasks
        if not self.console.is_terminal:
            yield
            return
        from rich.progress import BarColumn, Progress, TextColumn

        make_room()
        text = TextColumn("{task.fields[text]}", style="dim")
        columns = (TextColumn("{task.description}"), BarColumn(24), text)
        with Progress(*columns, console=self.console, refresh_per_second=2) as self._progress:
            self._bars = [(task, self._progress.add_task(task.name, total=1.0, text="")) for task in tasks]
            try:
                yield
            finally:
                self.draw()

    def draw(self) -> None:
        """Update the shown progress of the tasks."""
        if self._progress is not None:
            from rich.markup import escape

            for task, bar in self._bars:
                share, text = self._state(task)
                style = STYLES.get(task.fate, "dim")
                self._progress.update(bar, completed=share, text=text, description=f"[{style}]{escape(task.name)}[/]")
        elif time.monotonic() - self._spoken > SPEAK:
            self._spoken = time.monotonic()
            for task in self._tasks:
                if task.fate == "running":
                    share, text = self._state(task)
                    self.say(f"{task.name}: " + (f"{share:.0%}  " if share else "") + text)

    def _state(self, task: Task) -> tuple[float, str]:
        if task.fate == "done" and task.directory is not None:
            return 1.0, summary(task.directory) + (
                "  (already done)" if task.done_before else f"  in {clock(task.seconds)}"
            )
        if task.fate in ("running", "elsewhere") and task.directory is not None:
            path = task.directory.path
            if path not in self._watches:
                self._watches[path] = Watch(task.directory)
            glimpse = self._watches[path].look()
            return glimpse.share, f"{glimpse.text}  {clock(time.monotonic() - task.started)}".strip()
        if task.fate == "waiting" and task.needs:
            return 0.0, f"waits for {', '.join(need.name for need in task.needs if need.fate != 'done')}"
        if task.fate in ("stopped early", "held"):
            return 0.0, task.why
        return 0.0, task.fate + (f": {task.why}" if task.why else "")

    def say(self, text: str, style: str = "") -> None:
        """Print a permanent line."""
        stamp = clock(time.monotonic() - self._began)
        self.console.print(f"{stamp}  {text}", style=style, markup=False, highlight=False, soft_wrap=True)

    def settled(self, task: Task) -> None:
        """Print how a task ended; if it failed without a reason, also the last lines of its log."""
        if task.fate == "done":
            if self._progress is None:
                self.say(f"{task.name}: done, {self._state(task)[1]}")
            return
        if task.fate in ("stopped early", "held"):
            self.say(f"{task.name}: {task.why}")
            return
        self.say(f"{task.name}: {task.fate}: {task.why}", style="red")
        if task.fate == "failed" and task.directory is not None:
            if task.directory.state() != "failed":
                for line in last_lines(task.directory.log, LOG_LINES):
                    self.say(f"    {line}", style="dim")
            self.say(f"    full log: {task.directory.log}")


def clock(seconds: float) -> str:
    """`m:ss`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
