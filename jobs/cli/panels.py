"""Declare the commands of `mimbench`: each belongs to a panel of the help and has an example.

    RUNS = Panel("Pretrain and run")

    @RUNS.command("mimbench logs linear_handwritten --follow")
    def logs(run: OneRun, ...) -> None: ...

    RUNS.add_to(app)

Help is plain text: typer's rich help takes longer to import than everything else together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

HELP = {"help_option_names": ["-h", "--help"]}
OUTPUT = "--output"
FORMER = ("--out", "--html")  # former names of --output in some commands


class Command(TyperCommand):
    """A command whose help ends with an example and which still accepts the former names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        names = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, list(_current(args, names)))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        _write_example(self.epilog, formatter)


class Commands(TyperGroup):
    """Commands, listed by panel. Errors of the user are printed as one line.

    Attributes:
        titles: titles of the panels, in order.
    """

    titles: ClassVar[tuple[str, ...]] = ()

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            from mimbench.jobs.runs.execute import explained

            print(f"error: {explained(error)}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one line for each command."""
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in self.titles}
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            command = self.commands[name]
            title = getattr(command, "rich_help_panel", None)
            text = command.get_short_help_str(formatter.width - width - 4)
            panels.setdefault(title if isinstance(title, str) else "Commands", []).append((name.ljust(width), text))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        _write_example(self.epilog, formatter)


class Panel:
    """A panel of the help of `mimbench`, with its commands."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._adding: list[Callable[[typer.Typer], object]] = []

    def command(
        self, example: str, name: str | None = None, cls: type[Command] = Command
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Return a decorator that declares a function as a command, called `name` or by default as the function."""

        def declare(function: Callable[..., None]) -> Callable[..., None]:
            def add(app: typer.Typer) -> None:
                app.command(name, cls=cls, epilog=example, rich_help_panel=self.title)(function)

            self._adding.append(add)
            return function

        return declare

    def add(self, commands: typer.Typer, name: str) -> None:
        """Put a group of commands, `mimbench NAME COMMAND`, in this panel."""
        self._adding.append(lambda app: app.add_typer(commands, name=name, rich_help_panel=self.title))

    def add_to(self, app: typer.Typer) -> None:
        """Add all commands to `app`, in the order of their declaration."""
        for add in self._adding:
            add(app)


def group(about: str, example: str) -> typer.Typer:
    """Return a group of commands with the help text `about` and an example."""
    return typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None, help=about, epilog=example)


def _write_example(epilog: str | None, formatter: Any) -> None:
    if epilog:
        with formatter.section("Example"):
            formatter.write("".join(f"  {line}\n" for line in epilog.splitlines()))


def _current(words: list[str], names: set[str]) -> Iterator[str]:
    """Yield the words of a command line, with former names of options replaced by the present ones."""
    literal = False
    for word in words:
        option, equals, value = word.partition("=")
        literal = literal or word == "--"
        former = not literal and option in FORMER and option not in names and OUTPUT in names
        yield f"{OUTPUT}{equals}{value}" if former else word
