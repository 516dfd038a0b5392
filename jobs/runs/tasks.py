"""The installed tasks, found by searching, so that a new folder is a new task.

    tasks()                # every Task by its name, in listing order
    task_of("toy")         # the Task of a stage; ValueError with the known names
    known("toy")           # the same, or None if the task is not installed

Tasks come from three places: the subpackages of `mimbench` with a `task.py`; the folders named in `MIMBENCH_TASKS`
(separated by `:` as in PATH), whose parents are appended to `sys.path`; and the entry points of the group
`mimbench.tasks`, each of them a `Task`. `mimbench.engine.run.task` describes the fields of a task.
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
        ValueError: if a folder in `MIMBENCH_TASKS` is not a task, or two tasks have the same name.
    """
    return _tasks(tuple(elsewhere()))


@cache
def _tasks(folders: tuple[Path, ...]) -> Mapping[str, Task]:
    found: dict[str, Task] = {}
    for where, task in (*_shipped(), *_folders(folders), *_entry_points()):
        if task.name in found:
            raise ValueError(f"{where}: a task {task.name!r} already exists; rename this one")
        found[task.name] = task
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def _shipped() -> Iterator[tuple[str, Task]]:
    """Yield the tasks of the distribution, which are subpackages of `mimbench`."""
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
            raise ValueError(f"{VARIABLE} names {folder}, which has no task.py; name a folder of a task")
        if str(folder.parent) not in sys.path:
            sys.path.append(str(folder.parent))
        task = _in_module(f"{folder.name}.task", str(file))
        loaded = Path(str(sys.modules[f"{folder.name}.task"].__file__))
        if loaded.resolve() != file.resolve():
            raise ValueError(
                f"{VARIABLE} names {folder}, but Python imports {loaded.parent} instead; rename the folder"
            )
        yield str(file), task


def _entry_points() -> Iterator[tuple[str, Task]]:
    from importlib.metadata import entry_points  # takes longer to import than all tasks together

    for point in entry_points(group=GROUP):
        task = point.load()
        if not isinstance(task, Task):
            raise ValueError(f"the entry point {point.name} = {point.value} of {GROUP} is not a Task; let it name one")
        yield f"entry point {point.name} = {point.value}", task


def _in_module(name: str, file: str) -> Task:
    try:
        task = getattr(importlib.import_module(name), "TASK", None)
    except ImportError as error:
        raise ValueError(f"{file} cannot be imported: {error}") from error
    if not isinstance(task, Task):
        raise ValueError(f"{file} does not define TASK; add TASK = Task(...)")
    return task


# ------------------------------------------------------------------------------------------------- of a stage's name


def known(stage: str) -> Task | None:
    """Return the task of a stage; None if it is not installed."""
    return tasks().get(stage)


def task_of(stage: str) -> Task:
    """Return the task of a stage.

    Raises:
        ValueError: if it is not installed, listing those that are.
    """
    task = known(stage)
    if task is None:
        raise ValueError(f"task {stage!r} is not installed; the installed tasks are {', '.join(tasks())}")
    return task


def makes_encoders(stage: str) -> bool:
    """Return whether runs of this stage make encoders, that is, are pretrainings."""
    task = known(stage)
    return task is not None and task.makes_encoders


def role_of(stage: str) -> Role:
    """Return the role of a checkpoint in runs of this stage, unless the config sets another."""
    task = known(stage)
    takes = task.takes if task else "encoder"
    return "encoder" if takes == "nothing" else takes


def task_of_config(config: Any) -> Task | None:
    """Return the task that `config` belongs to, by its class."""
    return next((task for task in tasks().values() if type(config) in task.configs().values()), None)


# --------------------------------------------------------------------------------------------- of all tasks together


def protocols() -> dict[str, tuple[Task, Protocol]]:
    """Return the protocols of `mimbench evaluate --on`, by name.

    Raises:
        ValueError: if two tasks have a protocol of the same name.
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
    """Return every metric described by a task, by its key, in the order of the tasks."""
    return {metric.key: metric for task in tasks().values() for metric in task.metrics}


def columns() -> dict[str, Metric]:
    """Return the metrics that are columns of the table."""
    return {key: metric for key, metric in metrics().items() if metric.column != "never"}


def undescribed(key: str) -> Metric:
    """Return a description for a metric whose task is not installed: its key."""
    return Metric(key, key, UNKNOWN, column="measured")


def metric_of(key: str) -> Metric:
    """Return the description of the metric `key`, whether its task is installed or not."""
    return metrics().get(key) or undescribed(key)


def at_best_epoch(key: str) -> str:
    """Return the key of the same metric at the epoch that was best on the validation images; `key` if none exists."""
    for task in tasks().values():
        if task.best_epoch is not None and key.startswith(task.best_epoch[0]):
            return task.best_epoch[1] + key.removeprefix(task.best_epoch[0])
    return key


def headlines(stage: str, measured: Mapping[str, float]) -> list[str]:
    """Return the keys of `measured` shown in the line of a finished run: all, if the task is not installed."""
    task = known(stage)
    if task is None:
        return list(measured)
    return [metric.key for metric in task.metrics if metric.headline and metric.key in measured]


def card_entries() -> dict[str, CardEntry]:
    """Return the entries of model cards, by the key of the metric."""
    return {entry.key: entry for task in tasks().values() for entry in task.card}
