"""The panel "Evaluate": inspect a checkpoint, evaluate it, and export it to other libraries.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mimbench.engine.run.task import Pooled
from mimbench.jobs.cli.names import NamesInHelp, data_names, data_of_tasks, protocol_lists, protocol_recipes
from mimbench.jobs.cli.options import Json, Overrides, RecipeName, Seeds, Slots, run_names, run_names_or_files
from mimbench.jobs.cli.panels import Panel

EVALUATE = Panel("Evaluate")
CHECKPOINT = "A checkpoint's file, a Hugging Face folder, or a pretraining run."


@EVALUATE.command("mimbench evaluate vit.pth --on linear,fewshot --data imagenet", cls=NamesInHelp)
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT, autocompletion=run_names_or_files)
    ],
    on: Annotated[
        str,
        typer.Option(
            metavar="LIST", autocompletion=protocol_lists, help="One or more of {protocols}; separated by commas."
        ),
    ],
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            autocompletion=data_of_tasks,
            help="Data set. TASK=NAME sets that of one task: cls=imagenet.",
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROTOCOL=RECIPE",
            autocompletion=protocol_recipes,
            help="Use this recipe in place of the paper's for this size of encoder.",
        ),
    ] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Also run each protocol from random weights.")] = False,
    seeds: Seeds = 1,
    slots: Slots = None,
    json: Json = False,
) -> None:
    """Evaluate a checkpoint under the papers' protocols."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.studies.evaluate import Request

    request = Request(on.replace(" ", "").split(","), data or [], overrides or [], recipe or [], scratch)
    raise typer.Exit(commands.run_evaluation(checkpoint, request, slots, json, seeds))


@EVALUATE.command("mimbench inspect vit.pth")
def inspect(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT, autocompletion=run_names_or_files)
    ],
    copy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which weights to use if the file has several (ema, teacher ...)."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="What the file does not tell: family, heads, activation, mean, std."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show every key.")] = False,
    json: Json = False,
) -> None:
    """Show a checkpoint's family, encoder and used keys."""
    from mimbench.backbones.checkpoints.location import settled
    from mimbench.jobs.cli import inspect as inspection

    inspection.show(settled(checkpoint, settings or []), copy, json, keys)


@EVALUATE.command("mimbench embed vit.pth photographs/ --output features.safetensors")
def embed(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT, autocompletion=run_names_or_files)
    ],
    data: Annotated[
        str,
        typer.Argument(metavar="NAME|PATH", autocompletion=data_names, help="A data set, or a directory of images."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Write to this safetensors file.")],
    split: Annotated[Literal["train", "val"], typer.Option(help="The split, of a data set with two.")] = "val",
    pool: Annotated[Pooled, typer.Option(help="Mean of the patch tokens, class token, or both.")] = "avg",
    image: Annotated[int | None, typer.Option(min=1, help="Side in pixels. Default: the pretraining's.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store float16.")] = False,
    json: Json = False,
) -> None:
    """Write an encoder's features of images to a file."""
    from mimbench.engine.data.datasets import locate
    from mimbench.engine.run.task import Embedding
    from mimbench.jobs.runs import embed as embedding
    from mimbench.jobs.runs.store import encoder_file

    locate(data)
    embedding.show(Embedding(encoder_file(checkpoint), data, output, split, pool, image, half), json)


@EVALUATE.command("mimbench export vit.pth --to detectron2 --output vitdet.pth")
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT, autocompletion=run_names_or_files)
    ],
    to: Annotated[
        Literal["safetensors", "timm", "detectron2", "mae", "huggingface"],
        typer.Option(help="The library that will read it."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to this file (a folder for huggingface). Default: NAME-TO."
        ),
    ] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Resample to patches of this side: 16 for ViT-H in detectron2.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a checkpoint's encoder for another library."""
    from mimbench.jobs.cli import export as writer

    writer.export(checkpoint, to, output, patch, json)


@EVALUATE.command("mimbench lazyconfig det/mask_rcnn_vitdet_b_100ep checkpoint=vit.pth --output vitdet_b.py")
def lazyconfig(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .py file; weights go beside it.")
    ] = Path("lazyconfig.py"),
) -> None:
    """Write a detection recipe for detectron2 to train."""
    from mimbench.jobs.cli import lazyconfig as writer

    writer.write(recipe, overrides or [], output)


@EVALUATE.command("mimbench predict detector.pth photographs/ --output predictions")
def predict(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A detection run, or a detector's file.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Image files, or directories of them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Write pictures and results.json to this directory.")
    ] = Path("predictions"),
    score: Annotated[float, typer.Option(min=0, max=1, help="Draw detections with at least this score.")] = 0.5,
    json: Json = False,
) -> None:
    """Draw what a detector finds in images."""
    from mimbench.jobs.cli import predict as prediction

    raise typer.Exit(prediction.predict(source, images, output, score, json))


@EVALUATE.command("mimbench intervals linear_vitb-1a2b")
def intervals(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", autocompletion=run_names, help="Detection runs, and classifiers with save_predictions=true."
        ),
    ],
    draws: Annotated[
        int | None, typer.Option(min=20, help="How often images are resampled. [default: 10000; 200 for AP]")
    ] = None,
    json: Json = False,
) -> None:
    """Show how a result varies over images and seeds."""
    from mimbench.jobs.runs import intervals as bootstrap
    from mimbench.jobs.runs.store import runs_root

    bootstrap.show(runs, runs_root(), json, draws)


@EVALUATE.command("mimbench compare-predictions linear_vitb-1a2b linear_vitb-3c4d", name="compare-predictions")
def compare_predictions(
    before: Annotated[
        str, typer.Argument(metavar="RUN", help="A run with save_predictions=true, or its predictions.safetensors.")
    ],
    after: Annotated[str, typer.Argument(metavar="RUN", help="Another run, on the same images.")],
    json: Json = False,
) -> None:
    """Compare two runs' predictions image by image."""
    from mimbench.jobs.runs import predictions

    predictions.show(before, after, json)
