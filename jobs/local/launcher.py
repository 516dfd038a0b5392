"""Start the processes of a local study's runs: forks of one process that has imported what runs need.

    launcher = Launcher(threads=1, cores=1)
    job = launcher.submit(run, visible=None)       # at once; the process starts when the imports are done
    job.pid, job.done(), job.output
    launcher.close()

Importing torch, torchvision, timm and mmengine takes seconds of each process; a fork of `jobs.local.preloaded` has them
(`benchmarks/run_start.py`). Where forking is not sound (macOS) and for runs of several processes, which torchrun
starts, a run is a process of submitit's local executor.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mimbench.engine.run.rundir import RunDir, process_started
from mimbench.jobs.local.processes import kill, submit

FORKS = sys.platform == "linux"  # macOS' libraries do not bear it


class Job(Protocol):
    """The process of a run."""

    @property
    def pid(self) -> int | None:
        """Its number; SIGTERM to it ends the run in order. None: not started yet."""

    @property
    def output(self) -> Path:
        """The file with what it prints."""

    def done(self) -> bool:
        """Return whether it has ended."""


@dataclass
class Forked:
    """A process that `jobs.local.preloaded` forks for a run."""

    launcher: Launcher
    output: Path
    _pid: int | None = None
    _started: float | None = None  # since boot; None: it has ended

    @property
    def pid(self) -> int | None:
        """As `Job.pid`."""
        self.launcher.listen()
        return self._pid

    def done(self) -> bool:
        """As `Job.done`; also if the process that was to fork it has ended."""
        if self.pid is None:
            return not self.launcher.lives
        started = process_started(self._pid or 0)
        return self._started is None or started is None or abs(started - self._started) > 0.05

    def begun(self, pid: int) -> None:
        """Take note of the number of its process."""
        self._pid, self._started = pid, process_started(pid)


@dataclass
class Launcher:
    """Starts runs whose processes have `threads` CPU threads each; a run has `cores`, for its loading processes too."""

    threads: int
    cores: int
    _process: subprocess.Popen[bytes] | None = None
    _channel: socket.socket | None = None
    _unread: bytes = b""
    _asked: dict[str, Forked] = field(default_factory=dict)  # by run directory; not answered yet

    def submit(self, run: RunDir, visible: str | None, processes: int = 1) -> Job:
        """Start `run` on the GPUs `visible` (None: all), in `processes` processes.

        Raises:
            OSError: if no process can be started, or the run's directory cannot be written.
        """
        if processes > 1 or not FORKS:
            with _environment(self.threads, self.cores):
                return submit(run, visible, processes)
        if not self.lives:
            self._begin()
        assert self._channel is not None
        path = str(run.path.absolute())
        folder = Path(path) / "submitit"
        folder.mkdir(parents=True, exist_ok=True)
        job = self._asked[path] = Forked(self, folder / f"{len(list(folder.iterdir()))}.out")
        request = {"run": path, "visible": visible, "output": str(job.output)}
        self._channel.sendall(json.dumps(request).encode() + b"\n")
        return job

    @property
    def lives(self) -> bool:
        """Whether the process that forks runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> int | None:
        """The number of the process that forks runs; None before the first run."""
        return None if self._process is None else self._process.pid

    def listen(self) -> None:
        """Take the answers that have come, without waiting."""
        if self._channel is None:
            return
        with suppress(BlockingIOError, ConnectionError):
            while part := self._channel.recv(65536, socket.MSG_DONTWAIT):
                self._unread += part
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._asked.pop(answer["run"]).begun(answer["pid"])

    def close(self) -> None:
        """End the process that forks, and those of its runs that still live."""
        if self._process is None or self._channel is None:
            return
        self._channel.close()
        kill(self._process.pid)
        self._process.wait()
        self._process = self._channel = None

    def _begin(self) -> None:
        self._asked, self._unread = {}, b""
        self._channel, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-u", "-m", "mimbench.jobs.local.preloaded", str(theirs.fileno())]
        with theirs, _environment(self.threads, self.cores):  # the launcher's end of the channel is not inherited
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)


@contextmanager
def _environment(threads: int, cores: int) -> Iterator[None]:
    """Give processes started within the block their share of threads and cores, and let this process handle Ctrl-C.

    submitit's controller would kill its process one second after Ctrl-C, too soon for a run to end cleanly.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    shares = {"OMP_NUM_THREADS": threads, "MIMBENCH_CORES": cores}
    added = [name for name in shares if name not in os.environ]
    os.environ.update({name: str(shares[name]) for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
        signal.signal(signal.SIGINT, handler)
