"""The work behind the commands of the panel "Tables and reports"; jobs/cli/reports.py declares them."""

from __future__ import annotations

import sys
from pathlib import Path

from mimbench.engine.run.bar import working

TERMINAL = 120  # characters of a line of text in a file


def show_table(root: Path, name: str, written: str, output: Path | None) -> None:
    """Print a paper's table beside the runs under `root`, or write it to a file.

    Raises:
        ValueError: if the table or the format is unknown.
        OSError: if the file cannot be written.
    """
    from mimbench.jobs.runs import records
    from mimbench.jobs.tables import formats, paper_table

    if name in ("compute", "crossmae/compute"):
        from mimbench.jobs.tables import compute

        form = formats.checked(written)
        with working("counting in models"):
            text = compute.table(records.read(root)).text(form)
    else:
        text = formats.write(paper_table.build(name, records.read(root)), formats.checked(written))
    put(text, output)


def write_own_table(root: Path, written: str, output: Path | None) -> None:
    """Print the table of every finished run under `root` in a format, or write it to a file.

    Raises:
        ValueError: if there are no finished runs, or the format is unknown.
        OSError: if the file cannot be written.
    """
    from mimbench.jobs.tables import formats, own, table

    rows = table.rows(root)
    if not rows and written != "json":
        raise ValueError(f"no finished runs under {root.absolute()}; `mimbench demo` makes some")
    put(own.write(rows, formats.checked(written), TERMINAL), output)


def compare_runs(names: tuple[str, str], root: Path, page: Path | None, as_json: bool) -> None:
    """Print two runs side by side, or write them as an HTML page to `page`.

    Raises:
        ValueError: if a run does not exist or is not finished, or the runs belong to different stages.
        OSError: if the file cannot be written.
    """
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.run_names import find
    from mimbench.jobs.tables import compare

    first, second = (find(name, root).path for name in names)
    with working("comparing"):
        two = compare.compare(first, second, root)
    if as_json:
        print_json(compare.to_json(two))
    elif page is not None:
        put(compare.page(two), page)
    else:
        put(compare.text(two), None)


def write_card(target: str, root: Path, output: Path | None, repository: str | None, yes: bool) -> None:
    """Print a model card or write it to a file; with `repository`, upload it with its encoder.

    Raises:
        ValueError: if `target` is neither an encoder nor a run with one, or nobody confirms the upload.
        OSError: if the file cannot be written, or the hub refuses.
    """
    from mimbench.jobs.tables.card import card, encoder_of

    with working("writing the card"):
        text = card(target, root)
    if repository is None or output is not None:
        put(text, output)
    if repository is not None:
        from mimbench.jobs.cli.hub import push
        from mimbench.jobs.cli.options import agreed

        encoder = encoder_of(target, root)
        agreed(f"upload {encoder} and its card to {repository}?", yes)
        print(push(text, encoder, repository))


def put(text: str, output: Path | None) -> None:
    """Write `text` to stdout, or atomically to a file."""
    if output is None:
        sys.stdout.write(text)
        return
    from mimbench.engine.run.atomic import write_text

    write_text(output, text)
    print(output, file=sys.stderr)
