"""The panel "Tables and reports": results of runs, beside the papers' numbers and for model hubs.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mimbench.jobs.cli.options import Json, OfStudy, Output, Yes, run_names
from mimbench.jobs.cli.panels import Command, Panel, group

TABLES = Panel("Tables and reports")
papers = group("List and check the papers' numbers.", "mimbench papers list")


def _table_names(incomplete: str) -> list[str]:
    """Return the tables that begin with `incomplete`."""
    from mimbench.jobs.tables.paper import tables

    return [name for name in [*tables(), "crossmae/compute"] if name.startswith(incomplete)]


@TABLES.command("mimbench table crossmae/table2 --format markdown --output table2.md")
def table(
    name: Annotated[
        str | None,
        typer.Argument(metavar="PAPER/TABLE", autocompletion=_table_names, help="A paper's table, beside your runs."),
    ] = None,
    written: Annotated[
        Literal["terminal", "markdown", "latex", "csv", "json", "html"],
        typer.Option("--format", help="The format. CSV has unrounded numbers, a line for each."),
    ] = "terminal",
    output: Output = None,
    json: Json = False,
) -> None:
    """Print all finished runs, or a paper's table with ours.

    `mimbench papers list` lists the papers' tables.
    """
    from mimbench.jobs.cli import commands
    from mimbench.jobs.cli import tables as cli_tables
    from mimbench.jobs.runs.store import runs_root

    written = "json" if json else written
    if name is not None:
        cli_tables.show_table(runs_root(), name, written, output)
    elif written != "terminal" or output is not None:
        cli_tables.write_own_table(runs_root(), written, output)
    else:
        commands.show_table(runs_root(), as_json=False)


TABLES.add(papers, "papers")


@TABLES.command("mimbench compare mask_rcnn_vitdet_b_100ep-1a2b mask_rcnn_vitdet_b_100ep-3c4d --output compare.html")
def compare(
    first: Annotated[
        str,
        typer.Argument(metavar="RUN", autocompletion=run_names, help="A run directory, or the beginning of its name."),
    ],
    second: Annotated[str, typer.Argument(metavar="RUN", autocompletion=run_names, help="The run to compare it with.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write an HTML page to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two runs: settings, metrics, AP by category."""
    from mimbench.jobs.cli import tables as cli_tables
    from mimbench.jobs.runs.store import runs_root

    cli_tables.compare_runs((first, second), runs_root(), output, json)


@TABLES.command("mimbench report --output report.html")
def report(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to this file. Default: report.html with the runs."),
    ] = None,
    study: OfStudy = None,
) -> None:
    """Write one HTML page about all runs, or about a study."""
    from mimbench.jobs.cli import commands
    from mimbench.jobs.runs.store import runs_root

    commands.write_report(runs_root(), output, study)


@TABLES.command("mimbench serve --port 8080")
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines read.")
    ] = "127.0.0.1",
) -> None:
    """Show runs, curves, logs and tables in a browser, live.

    Reads the runs and changes nothing. On a cluster: `ssh -L 8765:127.0.0.1:8765 LOGIN-NODE`.
    """
    from mimbench.jobs.cli import serve as server
    from mimbench.jobs.runs.store import runs_root

    server.serve(runs_root(), host, port)


@TABLES.command("mimbench card crossmae_vitb_800ep-1a2b --output README.md")
def card(
    target: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A pretraining run, or an encoder's file.")],
    output: Output = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the card and the encoder to this repository of a model hub."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Write a model card for an encoder."""
    from mimbench.jobs.cli import tables as cli_tables
    from mimbench.jobs.runs.store import runs_root

    cli_tables.write_card(target, runs_root(), output, push, yes)


@TABLES.command("mimbench cost --study crossmae/table1")
def cost(study: OfStudy = None, json: Json = False) -> None:
    """Count GPU and CPU hours: used so far and to come.

    A study has its hours to come before it is submitted, too.
    """
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import gpu_hours
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import plan as planning
    from mimbench.jobs.studies.study_files import load_study, ready_studies
    from mimbench.jobs.studies.study_registry import studies
    from mimbench.jobs.studies.sweep import saved_names

    root = runs_root()
    unsent = study is not None and study not in studies(root)
    if study is not None and unsent and (study.endswith(".py") or study in (*ready_studies(), *saved_names(root))):
        found = gpu_hours.planned(planning.plan(load_study(study, root), root))
    else:
        found = gpu_hours.spent(root, study)
    if json:
        print_json(gpu_hours.to_json(found))
    else:
        print(gpu_hours.render(found))


@papers.command("list", cls=Command, epilog="mimbench papers list --json")
def papers_list(json: Json = False) -> None:
    """List every table of every paper."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.tables import paper

    known = [
        {"table": name, "title": table.title, "source": table.source, "numbers": len(paper.references(name))}
        for name, table in paper.tables().items()
    ]
    title, source = "Computation and cost of the methods, beside Tables 4, 5 and 18", "counted by mimbench"
    known.append({"table": "crossmae/compute", "title": title, "source": source, "numbers": 0})
    if json:
        print_json(known)
        return
    width = max(len(str(one["table"])) for one in known)
    for one in known:
        print(f"{one['table']:<{width}}  {one['title']}")


@papers.command("check", cls=Command, epilog="mimbench papers check")
def papers_check() -> None:
    """Check every paper's file: keys, recipes, unused numbers."""
    from mimbench.jobs.tables import paper
    from mimbench.jobs.tables.paper_check import problems

    found = problems()
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if found:
        raise typer.Exit(1)
    counts = [len(paper.references(name)) for name in paper.tables()]
    print(f"{len(paper.papers())} papers, {len(counts)} tables, {sum(counts)} numbers: ok")
