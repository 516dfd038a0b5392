"""The tables of one's own results in every format: `mimbench table --format csv|markdown|latex|html|json`.

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
from mimbench.jobs.tables.formats_html import environment
from mimbench.jobs.tables.grids import Grid
from mimbench.jobs.tables.sections import Section, sections
from mimbench.jobs.tables.table import Row, all_columns, to_json

FIELDS = ("kind", "recipe", "encoder", "note", "metric", "unit", "mean", "deviation", "seeds", "data", "runs")


def write(rows: Sequence[Row], written: Format, width: int | None = None) -> str:
    """Return the tables in a format; `width`: characters of a terminal line."""
    if written == "csv":
        return _csv(rows)
    if written == "json":
        return json.dumps(to_json(rows), indent=2) + "\n"
    if written == "html":
        return environment().get_template("own.html.jinja").render(grids=grids(rows))
    return "\n".join(grid.text(written, width) for grid in grids(rows))


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Return the tables as texts: one for each data set and protocol."""
    return [_grid(section) for section in sections(rows)]


def _grid(section: Section) -> Grid:
    lines = []
    for row in section.rows:
        name = "gain over scratch" if row.kind == "gain" else row.recipe
        encoder = "" if row.kind == "gain" else row.architecture
        lines.append((name, encoder, *(row.text(key) for key in section.columns)))
    heads = ("recipe", "encoder", *(metric.title for metric in section.columns.values()))
    return Grid("results", section.title, heads, tuple(lines), (section.caption,) if section.caption else ())


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in rows:
        before = (row.kind, row.recipe, row.architecture, row.note)
        for key in all_columns(rows):
            unit = metric_of(key).quantity.unit
            after: tuple[object, ...]
            if (cell := row.cells.get(key)) is not None:
                after = (cell.mean, cell.deviation, len(cell.values), row.data, " ".join(cell.runs))
            elif (gain := row.gains.get(key)) is not None:
                after = (gain.mean, gain.deviation, None, row.data, None)
            else:
                continue
            writer.writerow((*before, key, unit, *after))
    return out.getvalue()
