"""Run a study on this machine: each run a process of submitit's local executor, several at a time.

    finished = Local(study, root).run()        # one `Task` per run, with how it ended

A run starts when what it needs is done; of those that may start, the one with the longest chain behind it goes first.
When one fails, what needs it is left out and everything else carries on. Ctrl-C stops them all and leaves runs that can
be continued; asked again, finished runs are not repeated, and one that another process is running is waited for.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from engine.rundir import RunDir
from jobs.execute import explained
from jobs.processes import Memory, cores, kill, submit, visible_devices
from jobs.study import Run, Study
from jobs.watch import last_lines

if TYPE_CHECKING:
    from submitit import Job

    from jobs.display import Display

POLL = 0.5  # seconds between two looks at the processes
PATIENCE = 20.0  # seconds that a run has to end after SIGTERM

Fate = Literal["waiting", "running", "elsewhere", "done", "failed", "left out", "stopped"]


@dataclass
class Task:
    """A run of the study, and what has become of it."""

    run: Run
    fate: Fate = "waiting"
    why: str = ""
    directory: RunDir | None = None
    job: Job[int] | None = None
    slot: int | None = None
    started: float = 0.0
    seconds: float = 0.0
    done_before: bool = False

    @property
    def over(self) -> bool:
        """Nothing more will come of it."""
        return self.fate in ("done", "failed", "left out", "stopped")


class Local:
    """The scheduler of one study."""

    def __init__(self, study: Study, root: Path, slots: int, display: Display | None = None) -> None:
        study.check()
        self.root = root
        self.devices = visible_devices()
        self.slots = slots
        self.tasks = [Task(run) for run in study.runs]
        self.peak_memory = 0  # bytes, of all processes together
        self._weight = {task.run: _weight(task.run, study) for task in self.tasks}
        if display is None:
            from jobs.display import Display

            display = Display()
        self.display = display

    def run(self) -> list[Task]:
        """Run everything that can be run; how each ended.

        Raises:
            KeyboardInterrupt: after Ctrl-C, SIGTERM or a closed terminal, once every process has ended.
        """
        memory = Memory()
        with _interruptible(), self.display.showing(self.tasks):
            try:
                while not all(task.over for task in self.tasks):
                    self._look()
                    self._start()
                    self.display.draw()
                    memory.look()
                    time.sleep(POLL)
            except BaseException:
                self._stop()
                raise
            finally:
                self.peak_memory = memory.peak
        return self.tasks

    def _look(self) -> None:
        """Notice what has ended, and what will never start."""
        for task in self.tasks:
            if task.fate == "running" and task.job is not None and task.job.done():
                self._ended(task)
            elif task.fate == "elsewhere" and task.directory is not None and task.directory.state() != "running":
                task.fate = "waiting"  # done, or to be done here
            need = self._need(task)
            if task.fate == "waiting" and need is not None and need.fate in ("failed", "left out"):
                self._settle(task, "left out", f"it needs {need.run.name}")

    def _start(self) -> None:
        ready = [task for task in self.tasks if task.fate == "waiting" and self._is_ready(task)]
        for task in sorted(ready, key=lambda task: -self._weight[task.run]):
            if (slot := self._free_slot()) is None:
                return
            try:
                self._begin(task, slot)
            except (ValueError, OSError) as error:
                self._settle(task, "failed", explained(error))

    def _need(self, task: Task) -> Task | None:
        return next((other for other in self.tasks if other.run == task.run.need), None)

    def _is_ready(self, task: Task) -> bool:
        need = self._need(task)
        return need is None or need.fate == "done"

    def _free_slot(self) -> int | None:
        taken = {task.slot for task in self.tasks if task.fate == "running"}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def _begin(self, task: Task, slot: int) -> None:
        task.directory = task.run.directory(self.root)
        task.started = time.monotonic()
        state = task.directory.state()
        if state == "done":
            task.done_before = True
            self._settle(task, "done")
        elif state == "running":
            task.fate = "elsewhere"
            self.display.say(f"{task.run.name}: another process is running it; waiting for that")
        else:
            device = self.devices[slot % len(self.devices)] if self.devices else os.environ.get("CUDA_VISIBLE_DEVICES")
            task.job = submit(task.directory, device, max(1, cores() // self.slots))
            task.fate, task.slot = "running", slot
            self.display.say(f"{task.run.name}: started in {task.directory.path}")

    def _ended(self, task: Task) -> None:
        """Believe the run's files, not its process."""
        assert task.directory is not None
        state = task.directory.state()
        if state == "done":
            self._settle(task, "done")
        elif state == "running":  # it lost a race for its directory
            task.fate = "elsewhere"
            return
        else:
            self._settle(task, "failed", self._reason(task, state))
        if state in ("done", "failed"):
            shutil.rmtree(task.directory.path / "submitit", ignore_errors=True)

    def _reason(self, task: Task, state: str) -> str:
        assert task.directory is not None
        if state == "failed":
            return str(task.directory.attempts()[-1]["why"])
        if state == "interrupted":
            return "stopped from outside"
        if state == "lost":
            return "its process was killed, perhaps for want of memory"
        said = last_lines(task.job.paths.stdout, 1) if task.job is not None else []
        return "its process ended before it began" + "".join(f": {line}" for line in said)

    def _settle(self, task: Task, fate: Fate, why: str = "") -> None:
        task.fate, task.why = fate, why
        task.seconds = time.monotonic() - task.started if task.directory else 0.0
        self.display.settled(task)

    def _stop(self) -> None:
        """Ask every process to end, insist, and give up on those that will not."""
        running = [task for task in self.tasks if task.fate == "running" and task.job is not None]
        if running:
            self.display.say("stopping " + ", ".join(task.run.name for task in running))
        deadline = time.monotonic() + PATIENCE
        while (left := [task for task in running if task.job and not task.job.done()]) and time.monotonic() < deadline:
            for task in left:
                if task.job is not None:
                    with suppress(ProcessLookupError):
                        os.kill(int(task.job.job_id), signal.SIGTERM)  # submitit's controller passes it on
            time.sleep(0.5)
        for task in left:
            if task.job is not None:
                kill(int(task.job.job_id))
        for task in self.tasks:
            if not task.over:
                task.fate = "stopped"
        self.display.say("stopped; the same command goes on from the last checkpoints")


def _weight(run: Run, study: Study) -> float:
    """Minutes from the start of a run to the end of the longest chain that waits for it."""
    after = (_weight(other, study) for other in study.runs if other.need == run)
    return run.minutes + max(after, default=0.0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, SIGTERM and a closed terminal are Ctrl-C; what nohup had ignored stays ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
