"""The panel "Clusters": `mimbench cluster add|show|check`, profiles of sites."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from mimbench.jobs.cli.options import Json
from mimbench.jobs.cli.panels import Command, Panel, group

CLUSTERS = Panel("Clusters")
clusters = group("Describe and check clusters.", "mimbench cluster add a100 partition=gpu gpus_per_node=8")
CLUSTERS.add(clusters, "cluster")


def _names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from mimbench.jobs.slurm.cluster import names

    return [name for name in names() if name.startswith(incomplete)]


def _keys(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from dataclasses import fields

    from mimbench.jobs.slurm.cluster import Cluster

    return [f"{field.name}=" for field in fields(Cluster) if field.name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(autocompletion=_names, help="The cluster's name.")]


@clusters.command("add", cls=Command, epilog="mimbench cluster add a100 partition=gpu gpus_per_node=8")
def add(
    name: Name,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", autocompletion=_keys, help="Settings of the site.")
    ] = None,
) -> None:
    """Describe a cluster, or change its settings."""
    from mimbench.jobs.slurm.cluster import add as write

    print(write(name, settings or []))


@clusters.command("show", cls=Command, epilog="mimbench cluster show a100")
def show(
    name: Annotated[
        str | None, typer.Argument(autocompletion=_names, help="The cluster's name. Default: list all.")
    ] = None,
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


@clusters.command("check", cls=Command, epilog="mimbench cluster check a100")
def check(name: Name, as_json: Json = False) -> None:
    """Ask SLURM whether it would accept a job; submits nothing."""
    from mimbench.jobs.local.doctor import show_checks
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.slurm.cluster import load
    from mimbench.jobs.slurm.doctor import examine

    cluster = load(name)
    if cluster.kind == "local":
        print(f"{name} is this machine; `mimbench doctor` checks it", file=sys.stderr)
        return
    raise typer.Exit(show_checks(list(examine(cluster, runs_root())), as_json))


def probe(name: str, as_json: bool) -> int:
    """Do `mimbench doctor --cluster NAME`; return the exit code."""
    from mimbench.jobs.local.doctor import show_checks
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.slurm.cluster import load, save
    from mimbench.jobs.slurm.doctor import examine, proposal, rehearse
    from mimbench.jobs.slurm.proposals import changes

    cluster = load(name)
    if cluster.kind == "local":
        raise ValueError(f"--cluster {name} is this machine; `mimbench doctor` without --cluster checks it")
    asked = list(examine(cluster, runs_root()))
    refused = any(check.what == "a job" and check.verdict == "problem" for check in asked)
    if refused and (better := proposal(cluster)) is not None:
        print(f"{save(better)}: {' '.join(changes(cluster, better))}", file=sys.stderr)
        cluster = better
        asked = list(examine(cluster, runs_root()))
    if any(check.verdict == "problem" for check in asked):
        return show_checks(asked, as_json)
    return show_checks([*asked, *rehearse(cluster, runs_root(), lambda text: print(text, file=sys.stderr))], as_json)
