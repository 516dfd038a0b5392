"""The table of one's own results in every format: `mimbench table --format csv|markdown|latex|html|json`.

Markdown, LaTeX and HTML show what the terminal shows. CSV has a line for each cell, unrounded, so that it can be read
by a program; JSON has everything.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from mimbench.jobs.runs.tasks import metric_of
from mimbench.jobs.tables.formats import Format
from mimbench.jobs.tables.grids import Grid
from mimbench.jobs.tables.table import Row, caption, shown_columns, to_json

FIELDS = ("kind", "recipe", "encoder", "note", "metric", "unit", "mean", "deviation", "seeds", "data", "runs")


def write(rows: Sequence[Row], written: Format, width: int | None = None) -> str:
    """Return the table in a format; `width`: characters of a terminal line."""
    if written == "csv":
        return _csv(rows)
    if written == "json":
        return json.dumps(to_json(rows), indent=2) + "\n"
    return grid(rows).text(written, width)


def grid(rows: Sequence[Row]) -> Grid:
    """Return the table as texts."""
    columns = shown_columns(rows)
    lines = []
    for row in rows:
        name = "gain over scratch" if row.kind == "gain" else " – ".join(filter(None, (row.recipe, row.note)))
        lines.append((name, "" if row.kind == "gain" else row.architecture, *(row.text(key) for key in columns)))
    heads = ("recipe", "encoder", *(metric.title for metric in columns.values()))
    about = caption(rows)
    return Grid("results", "Results", heads, tuple(lines), (about,) if about else ())


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in rows:
        before = (row.kind, row.recipe, row.architecture, row.note)
        for key in shown_columns(rows):
            unit = metric_of(key).quantity.unit
            after: tuple[object, ...]
            if (cell := row.cells.get(key)) is not None:
                after = (cell.mean, cell.deviation, len(cell.values), cell.data, " ".join(cell.runs))
            elif (gain := row.gains.get(key)) is not None:
                after = (gain.mean, gain.deviation, None, None, None)
            else:
                continue
            writer.writerow((*before, key, unit, *after))
    return out.getvalue()
