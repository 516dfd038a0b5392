"""Find runs by name, cancel them, and start them anew: `find`, `cancel`, `renew`.

A run is named by its directory, by the beginning of its directory's name if that is unique (`linear-3f`), by the same
after `stage/`, or by its label in a study.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mimbench.engine.run.rundir import RunDir, process_started
from mimbench.jobs.studies.study_registry import directory_name, members, must_be_known, studies

STAYS = ("config.txt", "run.json", "log.txt", "submission.json", "submitit")  # files kept when a run begins anew


def find(name: str, root: Path) -> RunDir:
    """Return the run called `name`.

    Raises:
        ValueError: if no run or several runs match.
    """
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return RunDir(path)
    known = {directory_name(RunDir(file.parent)): RunDir(file.parent) for file in root.glob("*/*/run.json")}
    if name in known:
        return known[name]
    found = [full for full in known if full.startswith(name) or full.partition("/")[2].startswith(name)]
    if not found:
        labels = {full for runs in studies(root).values() for full, label in runs.items() if label == name}
        found = sorted(labels & known.keys())
    if len(found) == 1:
        return known[found[0]]
    if found:
        shown = ", ".join(sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(f"{name!r} matches {len(found)} runs: {shown}")
    raise ValueError(f"no run under {root.absolute()} is called {name!r}; `mimbench status` lists them")


def path_of(name: str, root: Path) -> Path:
    """Return `name` as a path if it exists, else the directory of the run called `name`.

    Raises:
        ValueError: if neither exists, or several runs match.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        return find(name, root).path
    except ValueError as error:
        raise ValueError(f"{name} does not exist, and {error}") from None


def find_all(names: Sequence[str], study: str | None, root: Path) -> list[RunDir]:
    """Return the runs called `names`, or all runs of a study.

    Raises:
        ValueError: if a run or the study does not exist, or neither is given.
    """
    if study is not None:
        must_be_known(root, study)
        listed = [RunDir(root / name) for name in members(root, study)]
        return [run for run in listed if run.about.exists()]
    if not names:
        raise ValueError("no run is named; name runs, or a study with --study NAME")
    return [find(name, root) for name in names]


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
