"""`mimbench cluster add|show|check`: site profiles. `jobs/cli/main.py` adds these to the `mimbench` command."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

clusters = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Describe and check the clusters to run on.")


def _names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from mimbench.jobs.slurm.cluster import names

    return [name for name in names() if name.startswith(incomplete)]


def _keys(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from dataclasses import fields

    from mimbench.jobs.slurm.cluster import Cluster

    return [f"{field.name}=" for field in fields(Cluster) if field.name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(autocompletion=_names, help="What the cluster is called.")]


@clusters.command("add")
def add(
    name: Name,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", autocompletion=_keys, help="Facts about the site.")
    ] = None,
) -> None:
    """Describe a cluster, or change what is said of it."""
    from mimbench.jobs.slurm.cluster import add as write

    print(write(name, settings or []))


@clusters.command("show")
def show(
    name: Annotated[str | None, typer.Argument(autocompletion=_names, help="Which; all names without.")] = None,
    as_json: Json = False,
) -> None:
    """Show a cluster's profile, or list the clusters."""
    from dataclasses import asdict

    from mimbench.jobs.slurm.cluster import load, names, profile_text

    if name is None:
        print(json.dumps(names()) if as_json else "\n".join(names()))
        return
    cluster = load(name)
    print(json.dumps(asdict(cluster), indent=2) if as_json else profile_text(cluster), end="\n" if as_json else "")


@clusters.command("check")
def check(name: Name, as_json: Json = False) -> None:
    """Ask SLURM, from here, whether it would take a job of this profile; no job is submitted."""
    from mimbench.jobs.local.doctor import show_checks
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.slurm.cluster import load
    from mimbench.jobs.slurm.doctor import examine

    cluster = load(name)
    if cluster.kind == "local":
        print(f"{name} is this machine: see `mimbench doctor`", file=sys.stderr)
        return
    raise typer.Exit(show_checks(list(examine(cluster, runs_root())), as_json))


def probe(name: str, as_json: bool) -> int:
    """`mimbench doctor --cluster NAME`; the exit code."""
    from mimbench.jobs.local.doctor import show_checks
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.slurm.cluster import load
    from mimbench.jobs.slurm.doctor import examine, rehearse

    cluster = load(name)
    if cluster.kind == "local":
        raise ValueError(f"{name} is this machine: `mimbench doctor` looks at it")
    asked = list(examine(cluster, runs_root()))
    if any(check.verdict == "problem" for check in asked):
        return show_checks(asked, as_json)
    return show_checks([*asked, *rehearse(cluster, runs_root(), lambda text: print(text, file=sys.stderr))], as_json)
