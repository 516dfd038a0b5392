"""Processes on this machine: one for each run, with its GPUs and cores, and the memory of all of them.

A process gets only an entry point and the path of a run directory, and does the same as `mimbench run RUN_DIR`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.local import torchrun
from mimbench.jobs.runs.execute import execute

if TYPE_CHECKING:
    from submitit import Job as SubmititJob

FOR_EVER = 60 * 24 * 365  # minutes; submitit requires a limit


def entry(run_dir: str, visible: str | None, processes: int = 1) -> int:
    """Execute a run directory on the GPUs `visible` (None: all), as the entry point of a submitted process.

    With several `processes`, torchrun takes this process's place and starts them.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would only log the signal
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # submitit hides all GPUs from a job that did not request any
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if processes > 1:
        words = torchrun.command(Path(run_dir), processes)
        os.execv(words[0], words)
    return execute(RunDir(Path(run_dir)))


@dataclass(frozen=True)
class Submitted:
    """A process of submitit's local executor."""

    job: SubmititJob[int]

    @property
    def pid(self) -> int:
        """The number of its controller, which passes SIGTERM on."""
        return int(self.job.job_id)

    @property
    def output(self) -> Path:
        """The file with what it prints."""
        return Path(self.job.paths.stdout)

    def done(self) -> bool:
        """Return whether it has ended."""
        return bool(self.job.done())


def submit(run: RunDir, visible: str | None, processes: int = 1) -> Submitted:
    """Start `processes` processes for `run` on the GPUs `visible`, through submitit."""
    import submitit

    executor = submitit.LocalExecutor(run.path.absolute() / "submitit")
    executor.update_parameters(timeout_min=FOR_EVER, stderr_to_stdout=True)
    return Submitted(executor.submit(entry, str(run.path.absolute()), visible, processes))


def kill(pid: int) -> None:
    """Kill a process and all its descendants at once."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


class Memory:
    """The peak memory of this process and all its descendants together; shared pages count once."""

    EVERY = 2.0  # seconds

    def __init__(self) -> None:
        self.peak = 0  # bytes
        self._looked = 0.0

    def look(self) -> None:
        """Measure if `EVERY` seconds have passed."""
        if time.monotonic() - self._looked < self.EVERY:
            return
        self._looked = time.monotonic()
        import psutil

        me, held = psutil.Process(), 0
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error):
                full = process.memory_full_info()
                held += getattr(full, "pss", full.uss)
        self.peak = max(self.peak, held)
