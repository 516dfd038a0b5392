"""Cancel runs, and start them anew: `cancel`, `renew`."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mimbench.engine.run.rundir import RunDir, process_started

STAYS = ("config.txt", "run.json", "log.txt", "submission.json", "submitit")  # files kept when a run begins anew


def cancel(runs: Sequence[RunDir], root: Path) -> list[RunDir]:
    """Remove runs from their cluster's queue and stop those running here; return the cancelled runs.

    Raises:
        ValueError: if a run is running on another machine and was not submitted to a cluster.
        OSError: if the scheduler does not answer.
    """
    here, by_cluster = [], dict[str, list[RunDir]]()
    for run in runs:
        if run.state() == "done":
            continue
        if (run.path / "submission.json").exists():
            from mimbench.jobs.slurm import submission

            if (noted := submission.read(run)) is not None:
                by_cluster.setdefault(noted.cluster, []).append(run)
                continue
        if run.state() == "running":
            here.append(run)
    for run in here:
        _stop(run)
    stopped = list(here)
    for name, theirs in by_cluster.items():
        from mimbench.jobs.slurm import cluster, schedulers

        schedulers.cancel(theirs, cluster.load(name))
        stopped += theirs
    return stopped


def _stop(run: RunDir) -> None:
    """Send SIGTERM to the process of the run, which ends cleanly and can be resumed."""
    last = run.attempts()[-1]
    if last["host"] != socket.gethostname():
        raise ValueError(f"{run.path} is running as process {last['pid']} on {last['host']}; cancel it on that machine")
    started = process_started(last["pid"])
    if started is not None and abs(started - last["process_started"]) < 0.05:
        with suppress(ProcessLookupError):
            os.kill(last["pid"], signal.SIGTERM)


def renew(run: RunDir) -> Path:
    """Move the files of a run to `old-1/` and so on, so that it starts from the beginning; return that directory.

    Raises:
        ValueError: if it is running.
        OSError: if it cannot be moved.
    """
    if run.state() == "running":
        raise ValueError(f"{run.path} is running: cancel it first with `mimbench cancel {run.path.name}`")
    number = 1
    while (aside := run.path / f"old-{number}").exists():
        number += 1
    aside.mkdir()
    made = sorted(
        path.name for path in run.path.iterdir() if path.name not in STAYS and not path.name.startswith("old-")
    )
    for name in sorted(made, key=lambda name: name != run.result.name):  # result first: without it the run is not done
        with suppress(FileNotFoundError):
            (run.path / name).rename(aside / name)
    return aside
