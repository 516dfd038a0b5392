"""Run a study on this machine: each run is a process of its own, several at a time.

    finished = Local(study, root).run()        # one `Task` per run, with how it ended

A run starts when the runs it needs are done or have written the encoder it starts from; of those that can start, the
one with the longest chain of dependent runs goes first. If a run fails, the runs that need it are left out and all
others continue. A run whose process is killed starts again, until three starts make no progress. Ctrl-C stops all runs
so that they can be resumed. Finished runs are not repeated; a run in another process is waited for. A run starts
only if the study's budget, if it has one, has its hours left; runs that the budget still holds at the end are left.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mimbench.engine.run.cores import available_cores
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.local.launcher import Job, Launcher
from mimbench.jobs.local.processes import Memory, kill
from mimbench.jobs.local.scheduled import Fate, Task
from mimbench.jobs.local.torchrun import must_be_here
from mimbench.jobs.runs.devices import visible_devices
from mimbench.jobs.runs.execute import explained
from mimbench.jobs.runs.states import why
from mimbench.jobs.runs.watch import last_lines
from mimbench.jobs.studies.budget import HELD, Account, Gate
from mimbench.jobs.studies.study import Made, Run, Study
from mimbench.jobs.studies.study_registry import add_members

if TYPE_CHECKING:
    from mimbench.jobs.local.display import Display

POLL = 0.5  # seconds between two checks of the processes
PATIENCE = 20.0  # seconds for a run to end after SIGTERM
STARTS = 3  # starts of a run whose process is killed without progress


class Local:
    """The scheduler of one study."""

    def __init__(
        self,
        study: Study,
        root: Path,
        slots: int,
        display: Display | None = None,
        retry: bool = True,
        gpus: int = 1,
        gate: Gate | None = None,
    ) -> None:
        study.check()
        self.gate, self._ends, self._asked = gate, 0, -1
        self.account: Account | None = None  # at the end, with a budget
        self.root, self.retry, self.gpus = root, retry, gpus
        self.devices = visible_devices()
        must_be_here(gpus, self.devices)
        self.slots = slots if gpus == 1 else min(slots, max(1, len(self.devices) // gpus))
        tasks = {run: Task(run, study.titles[run]) for run in study.runs}
        for run, task in tasks.items():
            task.needs = [tasks[need] for need in study.needs(run)]
        self.study, self.tasks = study, list(tasks.values())
        each = max(1, available_cores() // self.slots // self.gpus)
        self.launcher = Launcher(threads=each, cores=each * self.gpus)
        self.peak_memory = 0  # bytes, of all processes together
        self._weight = _weights(study)
        if display is None:
            from mimbench.jobs.local.display import Display

            display = Display()
        self.display = display

    def run(self) -> list[Task]:
        """Run everything that can run; return one task per run, with how it ended.

        Raises:
            KeyboardInterrupt: after Ctrl-C, SIGTERM or a closed terminal, once every process has ended.
        """
        memory = Memory()
        with _interruptible(), self.display.showing(self.tasks):
            try:
                while not all(task.over for task in self.tasks):
                    self._look()
                    self._look()  # what has just ended may have promoted a run that stopped before
                    self._start()
                    self.display.draw()
                    memory.look()
                    time.sleep(POLL)
            except BaseException:
                self._stop()
                raise
            finally:
                self.peak_memory = memory.peak
                self.launcher.close()
        if self.gate is not None:
            held = [task.directory or task.run.directory(self.root) for task in self.tasks if task.fate == "held"]
            self.account = self.gate.note_held(held)
        return self.tasks

    def _look(self) -> None:
        """Settle tasks that have ended or can never start."""
        for task in self.tasks:
            if task.fate == "running" and task.job is not None and task.job.done():
                self._ended(task)
            elif task.fate == "elsewhere" and task.directory is not None and task.directory.state() != "running":
                task.fate = "waiting"  # done, or to be done here
                self._ends += 1
            elif task.fate == "stopped early" and task.directory is not None and task.directory.state() != "stopped":
                task.fate = "waiting"  # promoted by the arrival of another run at its rung
            lost = next((need for need in task.needs if need.fate in ("failed", "left out")), None)
            if task.fate == "waiting" and lost is not None and not self._is_ready(task):
                self._settle(task, "left out", f"it needs {lost.name}")

    def _start(self) -> None:
        ready = [task for task in self.tasks if task.fate == "waiting" and self._is_ready(task)]
        ready.sort(key=lambda task: -self._weight[task.run])
        for task in ready if self.gate is None else self._within_budget(ready, self.gate):
            if (slot := self._free_slot()) is None:
                return
            try:
                self._begin(task, slot)
            except (ValueError, OSError) as error:
                self._settle(task, "failed", explained(error))
        if not any(task.fate in ("running", "elsewhere") for task in self.tasks):
            self._leave()

    def _leave(self) -> None:
        """Settle the runs that wait although nothing runs: for a run that stopped early, or for the budget."""
        waiting = [task for task in self.tasks if task.fate == "waiting"]
        ended = {id(task): need for task in waiting for need in task.needs if need.fate == "stopped early"}
        for task in waiting:
            if (need := ended.get(id(task))) is not None:
                self._settle(task, "left out", f"it needs {need.name}, which stopped early")
        if not ended and not any(self._is_ready(task) and not task.why for task in waiting):
            for task in waiting:
                self._settle(task, "held", task.why or f"{HELD}: a run it needs is held")

    def _within_budget(self, ready: Sequence[Task], gate: Gate) -> list[Task]:
        """Return which of the runs that can start may start within the budget, or need no hours."""
        free = self.slots - sum(task.fate == "running" for task in self.tasks)
        if not free or (self._asked == self._ends and all(task.why for task in ready)):
            return []  # until another run ends, those that are held stay so
        for task in ready:
            task.directory = task.directory or task.run.directory(self.root)
        over = ("done", "stopped", "running") if self.retry else ("done", "stopped", "running", "failed")
        asks = [task for task in ready if _asks(task, gate, over)]
        self._asked = self._ends
        held = gate.held([task.directory for task in asks if task.directory], free) if asks else {}
        for task in asks:
            task.why = held.get(task.directory.path.absolute(), "") if task.directory else ""
        return [task for task in ready if not task.why or task not in asks]

    def _is_ready(self, task: Task) -> bool:
        return all(need.fate == "done" or _has_left(need, task.run) for need in task.needs)

    def _free_slot(self) -> int | None:
        taken = {task.slot for task in self.tasks if task.fate == "running"}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def _begin(self, task: Task, slot: int) -> None:
        task.directory = task.run.directory(self.root)
        if not isinstance(task.run, Made):
            add_members(self.root, self.study.name, {task.directory: task.name})
        task.started = time.monotonic()
        state = task.directory.state()
        if state == "done":
            task.done_before = True
            self._settle(task, "done")
        elif state == "stopped":
            self._settle(task, "stopped early", str(task.directory.attempts()[-1]["why"]))
        elif state == "failed" and not self.retry and not task.starts:
            self._settle(
                task, "failed", f"{why(task.directory)} (in an earlier attempt; `mimbench retry` starts it again)"
            )
        elif state == "running":
            task.fate = "elsewhere"
            self.display.say(f"{task.name}: another process is running it; waiting for that process")
        else:
            at = _reached(task.directory)
            task.at, task.starts = at, task.starts + 1 if task.at == at else 1
            task.job = self.launcher.submit(task.directory, self._devices(slot), self.gpus)
            task.fate, task.slot = "running", slot
            self.display.say(f"{task.name}: started in {task.directory.path}")

    def _devices(self, slot: int) -> str | None:
        """Return the GPUs of a slot, as in CUDA_VISIBLE_DEVICES."""
        if not self.devices:
            return os.environ.get("CUDA_VISIBLE_DEVICES")
        if self.gpus == 1:
            return self.devices[slot % len(self.devices)]
        return ",".join(self.devices[slot * self.gpus : (slot + 1) * self.gpus])

    def _ended(self, task: Task) -> None:
        """Settle a task whose process has ended, by the run's files, not by the process."""
        assert task.directory is not None
        state = task.directory.state()
        if state == "done":
            self._settle(task, "done")
        elif state == "stopped":
            self._settle(task, "stopped early", str(task.directory.attempts()[-1]["why"]))
        elif state == "running":  # another process took its directory first
            task.fate = "elsewhere"
            return
        elif state == "interrupted" and task.directory.attempts()[-1]["state"] == "stopped":
            task.fate = "waiting"  # promoted while it was stopping
            return
        elif state == "lost" and (task.starts < STARTS or _reached(task.directory) != task.at):
            self.display.say(f"{task.name}: {self._reason(task, state)}; starting it again")
            task.fate = "waiting"
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
            return "stopped by a signal from another process"
        if state == "lost":
            often = f" {task.starts} times without progress" if task.starts > 1 else ""
            return f"its process was killed{often}, perhaps because memory ran out"
        said = last_lines(task.job.output, 1) if task.job is not None else []
        return "its process ended before the run began" + "".join(f": {line}" for line in said)

    def _settle(self, task: Task, fate: Fate, why: str = "") -> None:
        task.fate, task.why = fate, why
        task.seconds = time.monotonic() - task.started if task.started else 0.0
        self._ends += 1
        if self.gate is not None and task.directory is not None:
            self.gate.release(task.directory)
        self.display.settled(task)

    def _stop(self) -> None:
        """Send SIGTERM to every process, then kill those that do not end in time."""
        running = [task for task in self.tasks if task.fate == "running" and task.job is not None]
        if running:
            self.display.say("stopping " + ", ".join(task.name for task in running))
        deadline = time.monotonic() + PATIENCE
        jobs = [task.job for task in running if task.job is not None]
        while (left := list(_alive(jobs))) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.5)
        for pid in left:
            kill(pid)
        for task in self.tasks:
            if not task.over:
                task.fate = "stopped"
        self.display.say("stopped; the same command resumes from the last checkpoints")


def _asks(task: Task, gate: Gate, over: Sequence[str]) -> bool:
    """Return whether a task needs hours that are not reserved for it yet."""
    run = task.directory
    return run is not None and not gate.reserves(run) and run.state() not in over


def _alive(jobs: Iterable[Job]) -> Iterator[int]:
    """Yield the numbers of the processes that have started and not ended; the launcher ends those still to start."""
    for job in jobs:
        if (pid := job.pid) is not None and not job.done():
            yield pid


def _weights(study: Study) -> dict[Run, float]:
    """Return, for each run, the minutes from its start to the end of the longest chain of runs that need it."""
    weights = {run: run.minutes for run in study.runs}
    for run in reversed(list(study.ordered())):
        for need in study.needs(run):
            weights[need] = max(weights[need], need.minutes + weights[run])
    return weights


def _has_left(need: Task, run: Run) -> bool:
    """Return whether `need` has written the intermediate encoder from which `run` starts."""
    if run.epoch is None or run.need != need.run or need.directory is None:
        return False
    return need.directory.encoder_at(run.epoch).exists()


def _reached(run: RunDir) -> str:
    """Return the progress of a run by its newest checkpoint; "" at the beginning."""
    return max((file.name for file in run.checkpoints.glob("step-*.pt")), default="")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C within the block; signals ignored by nohup stay ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
