"""The panel "Data": `mimbench data add|list|make|shrink|check`.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mimbench.jobs.cli.names import NamesInHelp, kinds_of_data, one_of
from mimbench.jobs.cli.options import Json
from mimbench.jobs.cli.panels import Command, Panel, group

DATA = Panel("Data")
data = group("Name, check, generate and pack data sets.", "mimbench data add imagenet /datasets/imagenet")
DATA.add(data, "data")


@data.command("add", cls=Command, epilog="mimbench data add imagenet /datasets/imagenet")
def data_add(
    name: Annotated[str, typer.Argument(help="The name to use in recipes: data=NAME.")],
    path: Annotated[Path, typer.Argument(help="Its directory.")],
) -> None:
    """Give a data set a name."""
    from mimbench.engine.data.datasets import add

    print(f"{name}: {add(name, path)}")


@data.command("list", cls=Command, epilog="mimbench data list")
def data_list(json: Json = False) -> None:
    """List names and their paths."""
    from mimbench.jobs.cli import commands

    commands.show_data(json)


@data.command("make", cls=Command, epilog="mimbench data make handwritten digits --seed 1")
def data_make(
    name: Annotated[Literal["handwritten"], typer.Argument(help="The data set to generate.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that does not exist yet.")],
    seed: Annotated[int, typer.Option(help="Another seed generates different images.")] = 0,
) -> None:
    """Generate a data set."""
    from mimbench.engine.run.bar import working

    with working(f"writing {directory}"):
        from mimbench.engine.data.handwritten import make_handwritten

        written = make_handwritten(directory, seed)
    print(written)


@data.command("shrink", cls=Command, epilog="mimbench data shrink imagenet /fast/imagenet-256 --short 256")
def data_shrink(
    source: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A data set of images in folders of classes.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory, or an unfinished one to resume.")],
    short: Annotated[int, typer.Option(min=16, help="Pixels of the short side; 320 keeps more detail.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 90,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes. Default: one for each core.")] = None,
    json: Json = False,
) -> None:
    """Resize images and pack them into files that load faster."""
    from mimbench.jobs.cli import commands

    commands.shrink_data(source, directory, short, quality, workers, json)


@data.command("check", cls=NamesInHelp, epilog="mimbench data check imagenet /datasets/imagenet")
def data_check(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", autocompletion=kinds_of_data, callback=one_of("kinds"), help="The expected kind: {kinds}."
        ),
    ],
    path: Annotated[str, typer.Argument(metavar="NAME|PATH", help="The data set.")],
    json: Json = False,
) -> None:
    """Read all of a data set and report faults."""
    from mimbench.jobs.cli import commands

    raise typer.Exit(commands.check_data(kind, path, json))
