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

            raise typer.BadParameter(
                f"{value!r} is not one of {', '.join(names)}. {did_you_mean(value, names, ' ')}".strip()
            )
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


def states(incomplete: str) -> list[str]:
    """Return the states of runs that begin with `incomplete`."""
    from mimbench.jobs.runs.status import ORDER

    return [name for name in ORDER if name.startswith(incomplete)]


def data_names(incomplete: str) -> list[str]:
    """Return the names of data sets that begin with `incomplete`."""
    from mimbench.engine.data.datasets import listing

    return [name for name in listing() if name.startswith(incomplete)]


def data_of_tasks(incomplete: str) -> list[str]:
    """Return completions for `--data`: NAME, or TASK=NAME."""
    from mimbench.jobs.runs import tasks

    task, equals, name = incomplete.partition("=")
    if equals:
        return [f"{task}={known}" for known in data_names(name)]
    views = [f"{view}=" for known in tasks.tasks().values() if known.protocols for view in (known.name, *known.data)]
    return [*data_names(incomplete), *(view for view in views if view.startswith(incomplete))]


def protocol_recipes(incomplete: str) -> list[str]:
    """Return completions for `--recipe`: PROTOCOL=RECIPE."""
    protocol, equals, name = incomplete.partition("=")
    if not equals:
        return [f"{known}=" for known in _names("protocols") if known.startswith(incomplete)]
    return [f"{protocol}={recipe}" for recipe in recipe_names(name)]


def study_names_of_runs(incomplete: str) -> list[str]:
    """Return the studies with runs here that begin with `incomplete`."""
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies.study_registry import studies

    return [name for name in studies(runs_root()) if name.startswith(incomplete)]


def kinds_of_data(incomplete: str) -> list[str]:
    """Return the kinds of data sets that begin with `incomplete`."""
    return [name for name in _names("kinds") if name.startswith(incomplete)]


def counted_tasks(incomplete: str) -> list[str]:
    """Return the tasks that count operations and begin with `incomplete`."""
    return [name for name in _names("counted") if name.startswith(incomplete)]
