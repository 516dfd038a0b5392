"""Options and arguments shared by several commands, so that each has one spelling and one meaning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mimbench.jobs.cli.names import recipe_names, study_names_of_runs


def run_names(incomplete: str) -> list[str]:
    """Return the names of runs that begin with `incomplete`."""
    from mimbench.jobs.runs.store import runs_root

    folders = (file.parent for file in runs_root().glob("*/*/run.json"))
    names = (f"{folder.parent.name}/{folder.name}" if "/" in incomplete else folder.name for folder in folders)
    return sorted(name for name in names if name.startswith(incomplete))


def run_names_or_files(incomplete: str) -> list[str]:
    """Return the runs, and the files and directories here, that begin with `incomplete`."""
    before, slash, last = incomplete.rpartition("/")
    folder = Path(f"{before}{slash}" or ".").expanduser()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in inside if path.name.startswith(last) and not path.name.startswith(".")]
    return [*run_names(incomplete), *(f"{before}{slash}{path.name}{'/' * path.is_dir()}" for path in files)]


def keys_of_recipe(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return `KEY=` for each key that begins with `incomplete`, of the recipe named earlier on the line."""
    from mimbench.jobs.cli.commands import keys_of

    name = next((ctx.params[one] for one in ("target", "recipe", "run") if ctx.params.get(one)), "")
    return [f"{key}=" for key in keys_of(str(name)) if key.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Seeds = Annotated[int, typer.Option(min=1, help="Run this many seeds; print mean and standard deviation.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Runs at a time on this machine. Default: one for each GPU.")]
Gpus = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="On this machine: N processes for each run, one on each GPU.")
]
GpuHours = Annotated[
    float | None,
    typer.Option(metavar="N", help="Start only runs that fit into N GPU hours of the whole study; inf: no limit."),
]
CpuHours = Annotated[
    float | None, typer.Option(metavar="N", help="The same for the wall time of its runs without a GPU.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")]
OfStudy = Annotated[
    str | None,
    typer.Option("--study", metavar="STUDY", autocompletion=study_names_of_runs, help="All runs of this study."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", autocompletion=keys_of_recipe, help="Settings to change."),
]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help="A recipe; `mimbench recipes` lists them.")
]
RunNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN", autocompletion=run_names, help="Run directories, beginnings of their names, or labels."
    ),
]
OneRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", autocompletion=run_names, help="A run directory, the beginning of its name, or a label."
    ),
]


def slots_here() -> int:
    """Return the default number of runs at a time on this machine: one for each GPU, at least one."""
    from mimbench.jobs.runs.devices import visible_devices

    return len(visible_devices()) or 1


def agreed(question: str, yes: bool) -> None:
    """Return if the user agrees, by --yes or by typing yes; otherwise exit.

    Raises:
        ValueError: if stdin is not a terminal, so that nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"{question} Confirm with --yes: stdin is not a terminal")
    if not typer.confirm(question):
        raise typer.Exit(1)
