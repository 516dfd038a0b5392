"""Names defined by the installed tasks, for help texts and for completion in the shell.

They are looked up only when needed, so that other commands start fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from mimbench.jobs.cli.panels import Command


class NamesInHelp(Command):
    """A command whose help replaces `{protocols}`, `{kinds}` and `{counted}` by the available names."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the names filled in."""
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text and "{" in text:
                parameter.help = text.format_map(_Names())  # type: ignore[attr-defined]  # options and arguments have it
        super().format_help(ctx, formatter)


class _Names(dict[str, str]):
    """The replacement for each word in braces."""

    def __missing__(self, what: str) -> str:
        return ", ".join(_names(what))


def _names(what: str) -> list[str]:
    from mimbench.jobs.runs import tasks

    if what == "protocols":
        return list(tasks.protocols())
    if what == "kinds":
        return list(tasks.kinds_of_data())
    return [task.name for task in tasks.tasks().values() if task.flops]


def one_of(what: str) -> Callable[[str], str]:
    """Return a callback that rejects an argument, as wrong usage, unless it is one of the names of sort `what`."""

    def check(value: str) -> str:
        if value not in (names := _names(what)):
            from mimbench.engine.run.nearest import did_you_mean

            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}. {did_you_mean(value, names, ' ')}".strip())
        return value

    return check


def recipe_names(incomplete: str) -> list[str]:
    """Return the recipes that begin with `incomplete`."""
    from mimbench.jobs.runs.recipes import recipes

    return [recipe.name for recipe in recipes() if recipe.name.startswith(incomplete)]


def protocol_lists(incomplete: str) -> list[str]:
    """Return completions for `--on`: in a list with commas, the last name is completed."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _names("protocols") if name.startswith(last)]


def kinds_of_data(incomplete: str) -> list[str]:
    """Return the kinds of data sets that begin with `incomplete`."""
    return [name for name in _names("kinds") if name.startswith(incomplete)]


def counted_tasks(incomplete: str) -> list[str]:
    """Return the tasks that count operations and begin with `incomplete`."""
    return [name for name in _names("counted") if name.startswith(incomplete)]
