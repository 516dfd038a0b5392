"""Recipes by name: every public function of the modules that a task names is one (`Task.recipes`).

They are called `task/function`.

    find("cls/linear_vitb").build()      # the complete config

The first line of a recipe's docstring and what it states of its cost are what `mimbench recipes` shows.
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
        """`stage/function`, as the command line takes it."""
        return f"{self.stage}/{self.function.__name__}"

    @property
    def about(self) -> str:
        """One line."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """All that the docstring says, with the cost at the end of its first line."""
        first, newline, rest = (inspect.getdoc(self.function) or "").partition("\n")
        cost = stated(self.function)
        return (f"{first} {cost.text}" if cost else first) + newline + rest

    def build(self) -> Any:
        """The config."""
        return self.function()


def recipes() -> Iterator[Recipe]:
    """Yield every recipe, task by task, in the order of the modules that each names."""
    for task in tasks().values():
        for module in task.recipes():
            yield from _recipes_in(task.name, module)


def _recipes_in(stage: str, module: ModuleType) -> Iterator[Recipe]:
    for name, function in vars(module).items():
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module.__name__:
            yield Recipe(stage, function)


def find(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: if there is none; the nearest names are offered.
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
    """The config class `name` of a stage, as `run.json` records it.

    Raises:
        ValueError: if the stage has no such class.
    """
    task = known(stage)
    found = task.configs().get(name) if task else None
    if found is not None:
        return found
    raise ValueError(
        f"no config {name!r} of stage {stage!r} is known: the run is of another version of mimbench, or of a task that "
        "is not installed"
    )
