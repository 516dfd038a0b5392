"""Recipes by name: every public function of a module in a stage's `recipes/` is one.

They are named `stage/function`.

    find("cls/knn").build()      # the complete config

The first line of a recipe's docstring is what `mimbench recipes` shows.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any

from mimbench.engine.run.fields import recorded_name

STAGES = ("pretrain", "cls", "det")


@dataclass(frozen=True)
class Recipe:
    """A function that returns a complete config, and the stage that can run it."""

    stage: str
    function: Callable[[], Any]

    @property
    def name(self) -> str:
        """`stage/function`, as the command line takes it."""
        return f"{self.stage}/{self.function.__name__}"

    @property
    def about(self) -> str:
        """One line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def build(self) -> Any:
        """The config."""
        return self.function()


def recipes() -> Iterator[Recipe]:
    """Every recipe, stage by stage, in the order of the files."""
    for stage in STAGES:
        package = f"mimbench.{stage}.recipes"
        for file in pkgutil.iter_modules(importlib.import_module(package).__path__):
            yield from _recipes_in(stage, f"{package}.{file.name}")


def _recipes_in(stage: str, module: str) -> Iterator[Recipe]:
    for name, function in vars(importlib.import_module(module)).items():
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module:
            yield Recipe(stage, function)


def find(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: if there is none; the nearest names are offered.
    """
    known = _known()
    if name in known:
        return known[name]
    near = [full for full in known if full.rpartition("/")[2] == name] or difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`mimbench recipes` lists them"
    raise ValueError(f"unknown recipe {name!r}; {hint}")


@lru_cache
def _known() -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes()}


def config_type(stage: str, name: str) -> type[Any]:
    """The config class `name` of a stage, as `run.json` records it.

    Raises:
        ValueError: if the stage has no such class.
    """
    if stage in STAGES:
        for found in vars(importlib.import_module(f"mimbench.{stage}.config")).values():
            if is_dataclass(found) and isinstance(found, type) and recorded_name(found) == name:
                return found
    raise ValueError(f"no config {name!r} of stage {stage!r} is known: the run is of another version of mimbench")
