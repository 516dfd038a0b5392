"""The processes of runs on the cluster of this machine: find, pause and kill them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from mimbench.engine.run.rundir import RunDir


def of_run(run: RunDir) -> list[psutil.Process]:
    """The processes that srun started for the run, of all of its jobs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if str(run.path) in words and "mimbench" in words and not process.name().startswith("srun"):
                found.append(process)
    return found


def by_rank(run: RunDir) -> dict[int, psutil.Process]:
    """The processes of the run by rank."""
    found = {}
    for process in of_run(run):
        with suppress(psutil.Error):
            found[int(process.environ()["SLURM_PROCID"])] = process
    return found


def copies(run: RunDir) -> int:
    """How many processes of rank 0 the run has now."""
    found = 0
    for process in of_run(run):
        with suppress(psutil.Error):
            found += process.environ().get("SLURM_PROCID") == "0" and process.status() != psutil.STATUS_ZOMBIE
    return found


def of_slurm(title: str) -> list[psutil.Process]:
    """SLURM's processes of a job or a step, which call themselves `slurmstepd: [12.0]`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextmanager
def paused(run: RunDir) -> Iterator[None]:
    """Within, the run stands still, so that it is not over before the test is ready, however slow the machine."""
    processes = by_rank(run).values()
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
