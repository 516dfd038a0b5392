"""The tasks that are installed: found by looking, so that a new folder is a new task.

    tasks()                # every Task by its name, in the order in which they are listed
    task_of("toy")         # the Task of a stage; ValueError with the names that there are
    known("toy")           # the same, or None where the run is of a task that is not installed here

Three places are looked in: the subpackages of `mimbench` that hold a `task.py`; the folders that `MIMBENCH_TASKS` names
(joined by `:` as in PATH), whose parents go to the end of `sys.path`; and the entry points of the group
`mimbench.tasks`, each of them a `Task`. What a task says of itself is in `mimbench.engine.run.task`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.task import CardEntry, DataKind, Metric, Protocol, Quantity, Task

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.location import Role

VARIABLE = "MIMBENCH_TASKS"  # folders of tasks from elsewhere
GROUP = "mimbench.tasks"  # the group of entry points
UNKNOWN = Quantity("", unit="", digits=2)  # of metrics whose task is not installed


def tasks() -> Mapping[str, Task]:
    """Return every task by its name.

    Raises:
        ValueError: for a folder in `MIMBENCH_TASKS` that is no task, or two tasks of one name.
    """
    return _tasks(tuple(elsewhere()))


@cache
def _tasks(folders: tuple[Path, ...]) -> Mapping[str, Task]:
    found: dict[str, Task] = {}
    for where, task in (*_shipped(), *_folders(folders), *_entry_points()):
        if task.name in found:
            raise ValueError(f"{where}: there is a task {task.name!r} already; give this one another name")
        found[task.name] = task
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def _shipped() -> Iterator[tuple[str, Task]]:
    """The folders of the distribution, which are subpackages of `mimbench`."""
    package = find_spec("mimbench")  # its folders alone; the public API in it imports from here
    assert package is not None and package.submodule_search_locations is not None
    for folder in sorted(Path(place) for place in package.submodule_search_locations):
        for file in sorted(folder.glob("*/task.py")):
            yield str(file), _in_module(f"mimbench.{file.parent.name}.task", str(file))


def elsewhere() -> list[Path]:
    """Return the folders that `MIMBENCH_TASKS` names, absolute."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(text).expanduser().absolute() for text in named if text]


def _folders(folders: Iterable[Path]) -> Iterator[tuple[str, Task]]:
    for folder in folders:
        file = folder / "task.py"
        if not file.is_file():
            raise ValueError(f"{VARIABLE} names {folder}, which holds no task.py")
        if str(folder.parent) not in sys.path:
            sys.path.append(str(folder.parent))
        task = _in_module(f"{folder.name}.task", str(file))
        loaded = Path(str(sys.modules[f"{folder.name}.task"].__file__))
        if loaded.resolve() != file.resolve():
            raise ValueError(f"{VARIABLE} names {folder}, but {loaded.parent} goes before it: rename the folder")
        yield str(file), task


def _entry_points() -> Iterator[tuple[str, Task]]:
    from importlib.metadata import entry_points  # takes longer to import than all tasks together

    for point in entry_points(group=GROUP):
        task = point.load()
        if not isinstance(task, Task):
            raise ValueError(f"the entry point {point.name} = {point.value} of {GROUP} is not a Task")
        yield f"entry point {point.name} = {point.value}", task


def _in_module(name: str, file: str) -> Task:
    try:
        task = getattr(importlib.import_module(name), "TASK", None)
    except ImportError as error:
        raise ValueError(f"{file} cannot be imported: {error}") from error
    if not isinstance(task, Task):
        raise ValueError(f"{file} has no TASK = Task(...)")
    return task


# ------------------------------------------------------------------------------------------------- of a stage's name


def known(stage: str) -> Task | None:
    """Return the task of a stage, None where it is not installed."""
    return tasks().get(stage)


def task_of(stage: str) -> Task:
    """Return the task of a stage.

    Raises:
        ValueError: if it is not installed, listing those that are.
    """
    task = known(stage)
    if task is None:
        raise ValueError(f"no task {stage!r} is installed; the tasks are {', '.join(tasks())}")
    return task


def makes_encoders(stage: str) -> bool:
    """Whether runs of this stage leave encoders: whether they are pretrainings."""
    task = known(stage)
    return task is not None and task.makes_encoders


def role_of(stage: str) -> Role:
    """What a run of this stage takes its checkpoint for, unless its config says otherwise."""
    task = known(stage)
    takes = task.takes if task else "encoder"
    return "encoder" if takes == "nothing" else takes


def task_of_config(config: Any) -> Task | None:
    """Return the task that `config` belongs to, by its class."""
    return next((task for task in tasks().values() if type(config) in task.configs().values()), None)


# --------------------------------------------------------------------------------------------- of all tasks together


def protocols() -> dict[str, tuple[Task, Protocol]]:
    """Return what `mimbench evaluate --on` offers, by name.

    Raises:
        ValueError: if two tasks have a protocol of one name.
    """
    found: dict[str, tuple[Task, Protocol]] = {}
    for task in tasks().values():
        for protocol in task.protocols:
            if protocol.name in found:
                both = f"{found[protocol.name][0].name} and {task.name}"
                raise ValueError(f"the tasks {both} both have a protocol {protocol.name!r}; rename one of them")
            found[protocol.name] = task, protocol
    return found


def kinds_of_data() -> dict[str, DataKind]:
    """Return the kinds of data sets that `mimbench data check` knows, by name."""
    return {kind.name: kind for task in tasks().values() for kind in task.kinds}


def metrics() -> dict[str, Metric]:
    """Return every metric that some task describes, by its key, in the order of the tasks."""
    return {metric.key: metric for task in tasks().values() for metric in task.metrics}


def columns() -> dict[str, Metric]:
    """Return those that are columns of the table."""
    return {key: metric for key, metric in metrics().items() if metric.column != "never"}


def undescribed(key: str) -> Metric:
    """Return a description for a metric whose task is not installed: its key, as it is."""
    return Metric(key, key, UNKNOWN, column="measured")


def metric_of(key: str) -> Metric:
    """Return the description of the metric `key`, whether its task is installed or not."""
    return metrics().get(key) or undescribed(key)


def at_best_epoch(key: str) -> str:
    """Return the key of the same metric at the epoch that was best on the validation images; `key` if there is none."""
    for task in tasks().values():
        if task.best_epoch is not None and key.startswith(task.best_epoch[0]):
            return task.best_epoch[1] + key.removeprefix(task.best_epoch[0])
    return key


def headlines(stage: str, measured: Mapping[str, float]) -> list[str]:
    """Return the keys of `measured` that a line about a finished run shows: all, where the task is not installed."""
    task = known(stage)
    if task is None:
        return list(measured)
    return [metric.key for metric in task.metrics if metric.headline and metric.key in measured]


def card_entries() -> dict[str, CardEntry]:
    """Return what model cards show, by the key of the metric."""
    return {entry.key: entry for task in tasks().values() for entry in task.card}
