"""What `mimbench table NAME`, `mimbench papers` and `mimbench compare` do; `jobs/cli/main.py` declares them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

Push = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Upload it and the encoder to this repository of a model hub.")
]
papers = typer.Typer(
    cls=TyperGroup, no_args_is_help=True, rich_markup_mode=None, help="List and check the numbers of papers."
)


def show_table(root: Path, name: str, written: str, output: Path | None) -> None:
    """Print a paper's table beside the runs under `root`, or write it to a file.

    Raises:
        ValueError: for a name that no table has, or a format that there is not.
        OSError: if the file cannot be written.
    """
    from mimbench.jobs.runs import records
    from mimbench.jobs.tables import formats, paper_table

    if name in ("compute", "crossmae/compute"):
        from mimbench.jobs.tables import compute

        text = compute.table(records.read(root)).text(formats.checked(written))
    else:
        text = formats.write(paper_table.build(name, records.read(root)), formats.checked(written))
    put(text, output)


def compare_runs(names: tuple[str, str], root: Path, html: Path | None, as_json: bool) -> None:
    """Lay two runs side by side.

    Raises:
        ValueError: for runs that are not there, not finished, or of different stages.
        OSError: if the file cannot be written.
    """
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.control import find
    from mimbench.jobs.tables import compare

    first, second = (find(name, root).path for name in names)
    two = compare.compare(first, second, root)
    if as_json:
        print_json(compare.to_json(two))
    elif html is not None:
        put(compare.page(two), html)
    else:
        put(compare.text(two), None)


def write_card(target: str, root: Path, output: Path | None, repository: str | None, yes: bool) -> None:
    """Print a model card, or write it to a file; upload it with its encoder to `repository`, if that is wanted.

    Raises:
        ValueError: for what is no encoder, and no run that has one; if nobody says yes to an upload.
        OSError: if the file cannot be written, or the hub refuses.
    """
    from mimbench.jobs.tables.card import card, encoder_of

    text = card(target, root)
    if repository is None or output is not None:
        put(text, output)
    if repository is not None:
        from mimbench.jobs.cli.hub import push
        from mimbench.jobs.cli.runs import agreed

        encoder = encoder_of(target, root)
        agreed(f"upload {encoder} and its card to {repository}?", yes)
        print(push(text, encoder, repository))


def put(text: str, output: Path | None) -> None:
    """On stdout, or into a file, whole or not at all."""
    if output is None:
        sys.stdout.write(text)
        return
    from mimbench.engine.run.atomic import write_text

    write_text(output, text)
    print(output, file=sys.stderr)


@papers.command("list")
def papers_list(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List every table of every paper."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.tables import paper

    known = paper.tables()
    if json:
        print_json([
            {"table": name, "title": table.title, "source": table.source, "numbers": len(paper.references(name))}
            for name, table in known.items()
        ])  # fmt: skip
        return
    width = max(map(len, known))
    for name, one in known.items():
        print(f"{name:<{width}}  {one.title}")
    print(f"{'crossmae/compute':<{width}}  What the methods compute and cost, beside Tables 4, 5 and 18")


@papers.command("check")
def papers_check() -> None:
    """Look every paper's file over: its keys, the recipes it names, and that each number is of use."""
    from mimbench.jobs.tables import paper
    from mimbench.jobs.tables.paper_check import problems

    found = problems()
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if found:
        raise typer.Exit(1)
    counts = [len(paper.references(name)) for name in paper.tables()]
    print(f"{len(paper.papers())} papers, {len(counts)} tables, {sum(counts)} numbers: ok")
