"""The commands of `mimbench` for detectors: `predict`, `memory` and `lazyconfig`; `jobs/cli/main.py` adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimbench.jobs.cli.names import recipe_names

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (predict, memory):
        app.command()(command)


def predict(
    source: Annotated[str, typer.Argument(metavar="RUN|CKPT", help="A detection run, or a detector's file.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or directories of some.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pictures and results go.")] = Path("predictions"),
    score: Annotated[float, typer.Option(min=0, max=1, help="Draw what scores this or more.")] = 0.5,
    json: Json = False,
) -> None:
    """Draw what a detector finds in images: boxes, masks, names and scores."""
    from mimbench.jobs.cli import predict as prediction

    raise typer.Exit(prediction.predict(source, images, out, score, json))


def memory(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help="A detection recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to change.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many share the batch.")] = 1,
    free: Annotated[
        float | None, typer.Option(metavar="GIB", help="What each has; says what fits if this does not.")
    ] = None,
    json: Json = False,
) -> None:
    """Estimate how much memory a detection recipe needs on each GPU, before it runs."""
    from mimbench.jobs.runs import memory as preflight

    raise typer.Exit(preflight.show(recipe, overrides or [], gpus, free, json))


def lazyconfig(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help="Of detection.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to change.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .py file.")] = Path("lazyconfig.py"),
) -> None:
    """Write a detection recipe for detectron2's own training script."""
    from mimbench.jobs.cli import lazyconfig as writer

    writer.write(recipe, overrides or [], out)
