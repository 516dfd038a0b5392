"""Papers' tables as HTML: a page of its own, or the section of the report that `paper_tables.html.jinja` makes.

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
    """Where the templates of jobs/ are found; everything is escaped, and a name that is not given is an error."""
    import jinja2  # 0.1 s, which `mimbench --help` need not pay

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
    """A whole page."""
    return environment().get_template("tables.html.jinja").render(tables=tables, title=tables[0].paper)
