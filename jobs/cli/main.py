"""The `mimbench` command.

Bad input ends in one line, `error: ...`, and exit code 1; Ctrl-C in exit code 130. What a script would parse comes as
JSON with `--json`, on stdout; everything else goes to stderr. Each command imports what it needs when it is called, so
that `mimbench --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from mimbench.jobs.cli import detection as cli_detection
from mimbench.jobs.cli import runs as cli_runs
from mimbench.jobs.cli import studies as cli_studies
from mimbench.jobs.cli.cluster import clusters
from mimbench.jobs.cli.names import NamesInHelp, counted_tasks, kinds_of_data, one_of, protocol_lists, recipe_names
from mimbench.jobs.cli.tables import Push, papers


class Commands(TyperGroup):
    """Turns what people did wrong into one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
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


# Plain help: typer's rich one takes longer to import than everything else together.
app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
data = typer.Typer(cls=TyperGroup, no_args_is_help=True, rich_markup_mode=None, help="Name, make and check data sets.")


def main() -> None:
    """The console script."""
    app(prog_name="mimbench")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mimbench {version('mimbench')}")
        raise typer.Exit


def _keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """For completion in the shell: `KEY=` of the recipe named before."""
    from mimbench.jobs.cli.commands import keys_of

    return [f"{key}=" for key in keys_of(ctx.params.get("target") or "") if key.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", autocompletion=_keys, help="Values to change.")
]
Seeds = Annotated[int, typer.Option(min=1, help="So many runs, each with another seed; their mean and deviation.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Runs at a time.")]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pretrain masked-image-modelling encoders, evaluate them under the papers' protocols, compare the numbers.

    Runs are kept in ./runs; MIMBENCH_RUNS names another place.
    """


@app.command()
def demo(
    method: Annotated[
        Literal["crossmae", "mae", "maskalign", "famt"], typer.Option(help="How the encoder is pretrained.")
    ] = "crossmae",
    seeds: Annotated[int, typer.Option(min=1, help="How many times over, each with another seed.")] = 1,
    slots: Slots = None,
) -> None:
    """Pretrain, evaluate and report on this machine, in minutes."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.demo import NOTES
    from mimbench.jobs.demo import demo as study

    if method in NOTES:
        print(f"note: {NOTES[method]}", file=sys.stderr)
    raise typer.Exit(commands.run_demo(study(seeds, method), slots))


@app.command()
def run(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN_DIR", autocompletion=recipe_names, help="What to run, or go on with.")
    ],
    overrides: Overrides = None,
    seeds: Seeds = 1,
    json: Json = False,
) -> None:
    """Run a recipe, or a run directory. What was stopped goes on; what is done is not repeated."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.runs.execute import execute
    from mimbench.jobs.studies.seeds import asked_for

    overrides, seeds = asked_for(overrides or [], seeds)
    if seeds > 1:
        raise typer.Exit(commands.run_seeds(target, overrides, seeds, json))
    code = execute(directory := commands.run_of(target, overrides))
    if code == 0:
        commands.show_result(directory, json)
    raise typer.Exit(code)


@app.command(cls=NamesInHelp)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint, or a pretraining's run directory.")],
    on: Annotated[
        str, typer.Option(metavar="LIST", autocompletion=protocol_lists, help="Some of {protocols}; with commas.")
    ],
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|PATH", help="Data set; TASK=NAME where tasks differ: cls=imagenet."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="PROTOCOL=RECIPE", help="Another recipe than the paper's for this size.")
    ] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Each from random weights, too.")] = False,
    seeds: Seeds = 1,
    slots: Slots = None,
    json: Json = False,
) -> None:
    """Evaluate a checkpoint under the papers' protocols."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.studies.evaluate import Request

    request = Request(on.replace(" ", "").split(","), data or [], overrides or [], recipe or [], scratch)
    raise typer.Exit(commands.run_evaluation(checkpoint, request, slots, json, seeds))


@app.command("compare-predictions")
def compare_predictions(
    before: Annotated[str, typer.Argument(metavar="RUN", help="A run with save_predictions=true, or its file.")],
    after: Annotated[str, typer.Argument(metavar="RUN", help="Another, of the same images.")],
    json: Json = False,
) -> None:
    """Say which images two runs predict differently, and whether that is more than chance."""
    from mimbench.jobs.runs import predictions

    predictions.show(before, after, json)


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="FILE", help="A checkpoint, or a pretraining's run directory.")],
    copy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which set of weights, of a file with several (ema, teacher ...)."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show every key.")] = False,
    json: Json = False,
) -> None:
    """Say what a checkpoint is, and what becomes of every key in it."""
    from mimbench.jobs.cli import inspect as look

    look.show(checkpoint, copy, json, keys)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, or a pretraining's run directory.")],
    to: Annotated[Literal["safetensors", "timm", "detectron2", "mae"], typer.Option(help="Who is to read it.")],
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Where to. Default: FILE-TO, here.")] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Resample to patches of this side: 16 for ViT-H in detectron2.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a checkpoint's encoder for another library."""
    from mimbench.jobs.cli import export as writer

    writer.export(checkpoint, to, out, patch, json)


def _table_names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from mimbench.jobs.tables.paper import tables

    return [name for name in [*tables(), "crossmae/compute"] if name.startswith(incomplete)]


app.command()(cli_detection.lazyconfig)


@app.command()
def table(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[PAPER/TABLE]", autocompletion=_table_names, help="A paper's table beside our runs."),
    ] = None,
    written: Annotated[
        Literal["terminal", "markdown", "latex", "csv", "json", "html"],
        typer.Option("--format", help="How to write it."),
    ] = "terminal",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to.")] = None,
    json: Json = False,
) -> None:
    """Print the table of all finished runs, or a paper's table beside what we measured (`mimbench papers list`)."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.cli import tables as cli_tables
    from mimbench.jobs.runs.store import runs_root

    if name is not None:
        cli_tables.show_table(runs_root(), name, "json" if json else written, output)
    elif written not in ("terminal", "json") or output is not None:
        raise ValueError("--format and --output want the name of a paper's table; `mimbench papers list` shows them")
    else:
        commands.show_table(runs_root(), json or written == "json")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A directory, or the beginning of its name.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The one to compare with it.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page instead.")] = None,
    json: Json = False,
) -> None:
    """Lay two runs side by side: what differs, every metric, and each category's AP."""
    from mimbench.jobs.cli import tables as cli_tables
    from mimbench.jobs.runs.store import runs_root

    cli_tables.compare_runs((first, second), runs_root(), html, json)


@app.command()
def card(
    target: Annotated[str, typer.Argument(metavar="RUN|ENCODER", help="A pretraining's run, or an encoder's file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to.")] = None,
    push: Push = None,
    yes: cli_runs.Yes = False,
) -> None:
    """Write a model card for an encoder, in the form that model hubs read."""
    from mimbench.jobs.cli import tables as cli_tables
    from mimbench.jobs.runs.store import runs_root

    cli_tables.write_card(target, runs_root(), output, push, yes)


@app.command()
def report(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where. Default: report.html beside the runs.")
    ] = None,
    study: cli_runs.OfStudy = None,
) -> None:
    """Write the report of all runs, or of a study: one HTML file."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.runs.store import runs_root

    commands.write_report(runs_root(), output, study)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(autocompletion=recipe_names, help="Show all that this one sets.")
    ] = None,
    json: Json = False,
) -> None:
    """List recipes, or show one."""
    from mimbench.jobs.cli import commands

    commands.show_recipes(name, json)


@app.command(cls=NamesInHelp)
def flops(
    stage: Annotated[
        str,
        typer.Argument(metavar="TASK", autocompletion=counted_tasks, callback=one_of("counted"), help="Of {counted}."),
    ],
    json: Json = False,
) -> None:
    """Count what the decoders of MAE and CrossMAE compute, at every size."""
    from mimbench.jobs.cli import flops as counted

    counted.show(stage, json)


@app.command()
def doctor(
    data: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Time whether its images load as fast as a model trains.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(autocompletion=recipe_names, help="The pretraining to time it with.")
    ] = "pretrain/crossmae_vitb_800ep",
    overrides: Overrides = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Look at a cluster instead: a probe job of a minute.")
    ] = None,
    json: Json = False,
) -> None:
    """Look at this machine: what is there, what is missing, what to do."""
    if cluster is not None:
        from mimbench.jobs.cli.cluster import probe

        raise typer.Exit(probe(cluster, json))
    from mimbench.jobs.local import doctor as examination

    timed = examination.pace(data, recipe, overrides or []) if data else None
    raise typer.Exit(examination.show(json, timed))


@data.command("add")
def data_add(name: str, path: Path) -> None:
    """Give a data set a name."""
    from mimbench.engine.data.datasets import add

    print(f"{name}: {add(name, path)}")


@data.command("list")
def data_list(json: Json = False) -> None:
    """List the names and their paths."""
    from mimbench.jobs.cli import commands

    commands.show_data(json)


@data.command("make")
def data_make(
    name: Annotated[Literal["handwritten"], typer.Argument(help="The data set that can be made.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it must not exist.")],
    seed: Annotated[int, typer.Option(help="Another seed makes another data set.")] = 0,
) -> None:
    """Write a generated data set to a directory."""
    from mimbench.engine.data.handwritten import make_handwritten

    print(make_handwritten(directory, seed))


@data.command("shrink")
def data_shrink(
    source: Annotated[str, typer.Argument(metavar="NAME|PATH", help="The images, in folders of classes.")],
    directory: Annotated[Path, typer.Argument(metavar="OUT", help="Where to; a new directory, or one to go on with.")],
    short: Annotated[int, typer.Option(min=16, help="Pixels of the short side; 320 keeps more detail.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG.")] = 90,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes. Default: one for each core.")] = None,
    json: Json = False,
) -> None:
    """Shrink images and pack them into a few files that load four times as fast."""
    from mimbench.jobs.cli import commands

    commands.shrink_data(source, directory, short, quality, workers, json)


@data.command("check", cls=NamesInHelp)
def data_check(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", autocompletion=kinds_of_data, callback=one_of("kinds"), help="What it should be: {kinds}."
        ),
    ],
    path: Annotated[str, typer.Argument(metavar="NAME|PATH")],
    json: Json = False,
) -> None:
    """Read everything in a data set and say what is wrong."""
    from mimbench.jobs.cli import commands

    raise typer.Exit(commands.check_data(kind, path, json))


app.add_typer(data, name="data")
app.add_typer(clusters, name="cluster")
cli_studies.register(app)
cli_runs.register(app)
cli_detection.register(app)
app.add_typer(papers, name="papers")
