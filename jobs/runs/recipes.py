"""Recipes by name: the public functions of the modules that each task lists (`Task.recipes`).

Their names are `task/function`.

    find("cls/linear_vitb").build()      # the complete config

`mimbench recipes` shows the first line of a recipe's docstring and its stated cost.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from mimbench.engine.run.cost import stated
from mimbench.jobs.runs.tasks import known, tasks


@dataclass(frozen=True)
class Recipe:
    """A function that returns a complete config, and the task that can run it."""

    stage: str  # the task's name
    function: Callable[[], Any]

    @property
    def name(self) -> str:
        """Return the name on the command line, `stage/function`."""
        return f"{self.stage}/{self.function.__name__}"

    @property
    def about(self) -> str:
        """Return the description in one line."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """Return the whole docstring, with the cost at the end of its first line."""
        first, newline, rest = (inspect.getdoc(self.function) or "").partition("\n")
        cost = stated(self.function)
        return (f"{first} {cost.text}" if cost else first) + newline + rest

    def build(self) -> Any:
        """Return the config."""
        return self.function()


def recipes() -> Iterator[Recipe]:
    """Yield every recipe, task by task, in the order of its modules."""
    for task in tasks().values():
        for module in task.recipes():
            yield from _recipes_in(task.name, module)


def _recipes_in(stage: str, module: ModuleType) -> Iterator[Recipe]:
    for name, function in vars(module).items():
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module.__name__:
            yield Recipe(stage, function)


def find(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        ValueError: if it does not exist; the message offers the nearest names.
    """
    by_name = _by_name(tuple(tasks()))
    if name in by_name:
        return by_name[name]
    same = [full for full in by_name if full.rpartition("/")[2] == name]
    near = same or difflib.get_close_matches(name, by_name, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`mimbench recipes` lists them"
    raise ValueError(f"unknown recipe {name!r}; {hint}")


@cache
def _by_name(installed: tuple[str, ...]) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes()}


def config_type(stage: str, name: str) -> type[Any]:
    """Return the config class `name` of a stage, as recorded in `run.json`.

    Raises:
        ValueError: if the stage has no such class.
    """
    task = known(stage)
    found = task.configs().get(name) if task else None
    if found is not None:
        return found
    raise ValueError(
        f"unknown config {name!r} of stage {stage!r}: another version of mimbench made the run, or its task is not "
        "installed; install that version or task"
    )
