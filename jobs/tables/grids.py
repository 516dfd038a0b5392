"""A plain table of texts in every format: a heading, rows whose first text names them, notes below.

Empty columns are left out in the terminal, to save width.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Literal

from mimbench.jobs.tables.formats import Format, escape_markdown
from mimbench.jobs.tables.formats_html import environment
from mimbench.jobs.tables.formats_latex import escape_latex

BLANK = "–"  # an empty cell


@dataclass(frozen=True)
class Grid:
    """Texts in rows and columns."""

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self, written: Format, width: int | None = None) -> str:
        """Return the grid in a format; `width`: characters of a terminal line."""
        if written == "terminal":
            return self._terminal(width)
        return {
            "markdown": self._markdown,
            "latex": self._latex,
            "csv": self._csv,
            "json": self._json,
            "html": self._html,
        }[written]()

    def _terminal(self, width: int | None) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=io.StringIO(), width=width, color_system=None)
        shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, title=Text(self.title))
        columns = [index for index in range(len(self.heads)) if any(row[index] != BLANK for row in self.rows)]
        for index in columns:
            first = index == 0
            justify: Literal["left", "right"] = "left" if first else "right"
            shown.add_column(Text(self.heads[index]), justify=justify, overflow="fold", no_wrap=first)
        for row in self.rows:
            shown.add_row(*(Text(row[index]) for index in columns))
        console.print(shown)
        for note in self.notes:
            console.print(Text(note))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def _markdown(self) -> str:
        lines = [self.heads, [":--"] + ["--:"] * (len(self.heads) - 1)]
        lines += [[escape_markdown(text) for text in row] for row in self.rows]
        below = "\n".join(f"- {escape_markdown(note)}" for note in self.notes)
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {escape_markdown(self.title)}\n\n{table}\n\n{below}\n"

    def _latex(self) -> str:
        lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in self.rows]
        notes = [escape_latex(note) + r"\par" for note in self.notes]
        return "\n".join([
            r"\begin{table}[t]", r"\centering", rf"\caption{{{escape_latex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.heads) - 1)}}}", r"\toprule",
            " & ".join(map(escape_latex, self.heads)) + r" \\", r"\midrule", *lines, r"\bottomrule",
            r"\end{tabular}", r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize", *notes,
            r"\end{minipage}", r"\end{table}", "",
        ])  # fmt: skip

    def _csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.heads, *self.rows])
        return out.getvalue()

    def _json(self) -> str:
        rows = [dict(zip(self.heads, row, strict=True)) for row in self.rows]
        whole = {"table": self.name, "title": self.title, "rows": rows, "notes": list(self.notes)}
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"

    def _html(self) -> str:
        return environment().get_template("grid.html.jinja").render(grid=self, title=self.title)
