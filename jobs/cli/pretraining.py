"""The first half of the panel "Pretrain and run": recipes, and running them; the second half is runs.py.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import typer

from mimbench.jobs.cli.names import NamesInHelp, counted_tasks, one_of, recipe_names
from mimbench.jobs.cli.options import Gpus, Json, Overrides, RecipeName, Seeds, run_names
from mimbench.jobs.cli.panels import Panel

RUNS = Panel("Pretrain and run")


@RUNS.command("mimbench demo --method mae")
def demo(
    method: Annotated[
        Literal["crossmae", "mae", "maskalign", "famt"], typer.Option(help="The pretraining method.")
    ] = "crossmae",
    seeds: Annotated[int, typer.Option(min=1, help="Run this many seeds.")] = 1,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: 4, or fewer on fewer cores.")
    ] = None,
) -> None:
    """Pretrain, evaluate and report here, in minutes."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.demo import NOTES
    from mimbench.jobs.demo import demo as study

    if method in NOTES:
        print(f"note: {NOTES[method]}", file=sys.stderr)
    raise typer.Exit(commands.run_demo(study(seeds, method), slots))


@RUNS.command("mimbench run pretrain/crossmae_vitb_800ep data=imagenet epochs=100")
def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN_DIR", autocompletion=recipe_names, help="A recipe to run, or a run directory to resume."
        ),
    ],
    overrides: Overrides = None,
    seeds: Seeds = 1,
    gpus: Gpus = None,
    json: Json = False,
) -> None:
    """Run a recipe, or resume a run directory.

    An interrupted run continues from its last checkpoint; a finished run is not repeated.
    """
    from mimbench.jobs.cli import commands
    from mimbench.jobs.runs.execute import execute, go_on_with
    from mimbench.jobs.studies.seeds import asked_for

    overrides, seeds = asked_for(overrides or [], seeds)
    if seeds > 1:
        raise typer.Exit(commands.run_seeds(target, overrides, seeds, json, gpus or 1))
    directory = commands.run_of(target, overrides)
    code = commands.execute_on(directory, gpus) if gpus and gpus > 1 else execute(directory)
    if code == 0 and not directory.result.exists():
        go_on_with(directory)  # stopped early: this process is free for another run of the sweep
    elif code == 0 and os.environ.get("RANK", "0") == "0":
        commands.show_result(directory, json)
    raise typer.Exit(code)


@RUNS.command("mimbench recipes cls/linear_vitb")
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help="Show all its settings.")
    ] = None,
    json: Json = False,
) -> None:
    """List recipes, or show the settings of one."""
    from mimbench.jobs.cli import commands

    commands.show_recipes(name, json)


@RUNS.command("mimbench explain cls/linear_vitb base_lr=0.2 checkpoint=vit.pth")
def explain(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|RECIPE", autocompletion=run_names, help="A run, or a recipe followed by settings."),
    ],
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Show which settings distinguish a run from others."""
    from mimbench.jobs.cli.commands import explain_run

    explain_run(run, overrides or [], json)


@RUNS.command("mimbench memory det/mask_rcnn_vitdet_l_100ep --gpus 8 --free 80")
def memory(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the batch.")] = 1,
    free: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Memory of each GPU; if the recipe does not fit, print settings that do."),
    ] = None,
    json: Json = False,
) -> None:
    """Estimate the GPU memory of a recipe before it runs."""
    from mimbench.jobs.runs import memory as preflight

    raise typer.Exit(preflight.show(recipe, overrides or [], gpus, free, json))


@RUNS.command("mimbench flops pretrain", cls=NamesInHelp)
def flops(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="TASK", autocompletion=counted_tasks, callback=one_of("counted"), help="One of {counted}."
        ),
    ],
    modules: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", autocompletion=recipe_names, help="Print fvcore's table of a recipe's modules."),
    ] = None,
    depth: Annotated[int, typer.Option(min=0, help="With --modules: levels of nested modules to show.")] = 2,
    json: Json = False,
) -> None:
    """Count operations: decoders, or a recipe's modules."""
    from mimbench.jobs.cli import flops as counted

    if modules is None:
        counted.show(stage, json)
    else:
        counted.show_modules(stage, modules, depth, json)
