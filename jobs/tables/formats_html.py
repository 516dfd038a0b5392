"""Papers' tables as HTML: a separate page, or the section of the report from `paper_tables.html.jinja`.

The page is one file without script or request; it follows the reader's colour scheme and prints. Everything that comes
from a run or a paper is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.jobs.tables.paper_table import PaperTable, heading

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent


def environment() -> jinja2.Environment:
    """Return the environment for the templates of jobs/; it escapes everything and rejects undefined names."""
    import jinja2  # takes 0.1 s, which would slow `mimbench --help`

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["heading"] = heading
    return made


def page(tables: Sequence[PaperTable]) -> str:
    """Return a whole HTML page of `tables`."""
    return environment().get_template("tables.html.jinja").render(tables=tables, title=tables[0].paper)
