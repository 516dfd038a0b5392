"""The process from which a local study forks its runs: it has imported torch and all that runs need, once for all.

    python -m mimbench.jobs.local.preloaded FD       started by `jobs.local.launcher`, which holds the other end of FD

Reads one JSON request per line, forks a process that executes the run directory, and answers with its number:

    {"run": DIR, "visible": "0,1" or null, "output": FILE}        ->  {"run": DIR, "pid": 4711}

A run's process is as if it had started by itself: own output, environment, signals and exit code, and it outlives this
process. This process does nothing but import: it starts no thread, uses no GPU and draws no random number, so a fork is
sound and a run's numbers are those of `mimbench run`. It ends when the other end of FD is closed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.tasks import known


def main() -> int:
    """Serve requests until the launcher goes; return the exit code, in a forked process that of its run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets ended children; nobody here waits for them
    channel = socket.socket(fileno=int(sys.argv[1]))
    with channel.makefile("r", encoding="utf-8") as requests:
        for line in requests:
            asked = json.loads(line)
            _load(Path(asked["run"]))
            sys.stdout.flush()
            if (pid := os.fork()) == 0:
                channel.detach()
                os.close(int(sys.argv[1]))
                return _execute(asked)
            channel.sendall(json.dumps({"run": asked["run"], "pid": pid}).encode() + b"\n")
    return 0


def _load(run: Path) -> None:
    """Import what the run's task needs; a failure is left to the run, which meets and reports it."""
    try:
        task = known(RunDir(run).read_about()["stage"])
        if task is not None and task.load is not None:
            task.load()
    except Exception:
        return
    gc.collect()
    gc.freeze()  # the collector would otherwise write to every imported object, and so copy it in each process


def _execute(asked: dict[str, Any]) -> int:
    """Execute the run in this forked process; return its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _redirect(asked["output"])
    if asked["visible"] is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = asked["visible"]
    return execute(RunDir(Path(asked["run"])))


def _redirect(output: str) -> None:
    """Send standard output and error to the end of the file `output`, and read nothing from standard input."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(file)


if __name__ == "__main__":
    sys.exit(main())
