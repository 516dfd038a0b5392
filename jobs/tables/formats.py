"""A paper's table as text: for a terminal, Markdown, LaTeX, CSV, JSON or HTML.

    mimbench table crossmae/table1 --format latex -o table1.tex

Every format has the printed number, ours, the difference (in parentheses unless the protocols are known to be the
same), footnotes, the missing cells and the commands that fill them. CSV has a line for each cell and two columns of
differences, so that incomparable ones are not averaged by accident; JSON has everything, unrounded.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from mimbench.jobs.tables.formats_html import page
from mimbench.jobs.tables.formats_latex import latex
from mimbench.jobs.tables.matching import Comparison, Difference
from mimbench.jobs.tables.paper import Column
from mimbench.jobs.tables.paper_table import Cell, Missing, PaperTable, heading
from mimbench.jobs.tables.significance import Sample

Format = Literal["terminal", "markdown", "latex", "csv", "json", "html"]
MISSING = "–"
COMMAND = "    "
FIELDS = (
    "table", "row", "column", "metric", "unit", "paper", "paper_deviation", "ours", "ours_deviation", "seeds",
    "difference", "difference_not_comparable", "interval_low", "interval_high", "verdict", "runs",
)  # fmt: skip


def checked(name: str) -> Format:
    """Return `name` if it is a format.

    Raises:
        ValueError: if it is not.
    """
    if name != "terminal" and name not in _WRITERS:
        raise ValueError(f"--format {name} is unknown; the formats are terminal, {', '.join(_WRITERS)}")
    return cast("Format", name)


def write(tables: Sequence[PaperTable], written: Format, width: int | None = None) -> str:
    """Return `tables` in a format; `width`: characters of a terminal line."""
    if written == "terminal":
        return terminal(tables, width)
    return _WRITERS[written](tables)


# ------------------------------------------------------------------------------------------------------- terminal


def terminal(tables: Sequence[PaperTable], width: int | None = None) -> str:
    """Return plain text; cells have the printed number, ours and the difference below each other."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in tables:
        show(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def show(table: PaperTable, console: Any) -> None:
    """Print `table` on a rich console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_lines=False)
    shown.add_column("", overflow="fold")
    for column in table.columns:
        shown.add_column(Text(heading(column)), justify="right", overflow="fold")
    for label, cells in table.rows:
        style = "bold" if any(cell.best for cell in cells.values()) else ""
        shown.add_row(Text(label), *(Text(_stacked(cells.get(column.key))) for column in table.columns), style=style)
    console.print(Text(f"{table.name}: {table.title}", style="bold"))
    console.print(Text(f"{table.paper}, {table.source}"), style="dim")
    console.print(shown)
    for line in lines_below(table):
        console.print(Text(line), soft_wrap=line.startswith(COMMAND))  # a command must be copyable as one line
    console.print()


def _stacked(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    if cell.best is None:
        return cell.printed
    return f"{cell.printed}\n{cell.ours}\n{cell.difference}{_marks(cell)}"


def _marks(cell: Cell) -> str:
    return "".join(f" [{mark}]" for mark in cell.marks)


def lines_below(table: PaperTable) -> list[str]:
    """Return the footnotes, the notes and the missing cells as lines."""
    lines = ["In each cell: the printed number, ours and the difference."] if table.measured else []
    lines += [f"[{number}] {text}" for number, text in enumerate(table.footnotes, 1)]
    lines += [f"Note: {note}" for note in table.notes]
    for missing in table.missing:
        lines.append(f"Missing: {'; '.join(missing.cells)} ({missing.text}):")
        lines += [COMMAND + command for command in missing.commands]
    return lines + [f"Left out: {problem}" for problem in table.left_out]


# ------------------------------------------------------------------------------------------------------- Markdown


def markdown(tables: Sequence[PaperTable]) -> str:
    """Return `tables` as GitHub's Markdown."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: PaperTable) -> str:
    heads = [""]
    for column in table.columns:
        name = escape_markdown(heading(column))
        heads += [f"{name}, paper", f"{name}, ours"] if column.key in table.measured else [name]
    source = f"[{escape_markdown(table.source)}]({table.url}) of {escape_markdown(table.paper)}."
    rule = [":--"] + ["--:"] * (len(heads) - 1)
    lines = [f"### {escape_markdown(table.title)}", "", source, "", _line(heads), _line(rule)]
    for label, cells in table.rows:
        texts = [escape_markdown(label)]
        for column in table.columns:
            cell = cells.get(column.key)
            texts.append(cell.printed if cell else MISSING)
            if column.key in table.measured:
                texts.append(_markdown_ours(cell))
        lines.append(_line(texts))
    lines.append("")
    lines += [f"{number}. {escape_markdown(text)}" for number, text in enumerate(table.footnotes, 1)]
    lines += ["", *(f"- {escape_markdown(note)}" for note in table.notes)] if table.notes else []
    for missing in table.missing:
        lines += ["", f"Missing: {escape_markdown('; '.join(missing.cells))} ({missing.text}):", ""]
        lines += ["```bash", *missing.commands, "```"]
    lines += ["", *(f"- Left out: {escape_markdown(problem)}" for problem in table.left_out)] if table.left_out else []
    return "\n".join(lines) + "\n"


def _markdown_ours(cell: Cell | None) -> str:
    if cell is None or cell.best is None:
        return MISSING
    marks = "".join(f"<sup>{mark}</sup>" for mark in cell.marks)
    return f"**{cell.ours}** {cell.difference}{marks}"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def escape_markdown(text: str) -> str:
    """Return `text` with Markdown characters escaped."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


# ----------------------------------------------------------------------------------------------------- CSV and JSON


def to_csv(tables: Sequence[PaperTable]) -> str:
    """Return CSV with a line for each printed number, unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        columns = {column.key: column for column in table.columns}
        for label, cells in table.rows:
            writer.writerows(_csv_line(table, label, columns[key], cell) for key, cell in cells.items())
    return out.getvalue()


def _csv_line(table: PaperTable, label: str, column: Column, cell: Cell) -> dict[str, Any]:
    flat = cell_json(cell)
    ours = flat["ours"] or {}
    return {
        "table": table.name,
        "row": label,
        "column": column.key,
        "metric": column.metric,
        "unit": column.unit,
        "paper": str(cell.reference.value),
        "paper_deviation": flat["paper"]["deviation"],
        "ours": ours.get("mean"),
        "ours_deviation": ours.get("deviation"),
        "seeds": len(ours.get("values", ())) or None,
        "difference": flat["difference"],
        "difference_not_comparable": flat["difference_not_comparable"],
        "interval_low": (flat["interval"] or {}).get("low"),
        "interval_high": (flat["interval"] or {}).get("high"),
        "verdict": f"not used: {cell.reference.unused}"
        if cell.reference.unused
        else (flat["verdict"] or {}).get("text"),
        "runs": " ".join(ours.get("runs", ())),
    }


def to_json(tables: Sequence[PaperTable]) -> list[dict[str, Any]]:
    """Return `tables` as JSON values."""
    return [
        {
            "table": table.name,
            "paper": table.paper,
            "title": table.title,
            "source": table.source,
            "url": table.url,
            "columns": [{"key": column.key, "title": column.title, "metric": column.metric, "unit": column.unit}
                        for column in table.columns],
            "rows": [{"label": label, "cells": {key: cell_json(cell) for key, cell in cells.items()}}
                     for label, cells in table.rows],
            "footnotes": list(table.footnotes),
            "notes": list(table.notes),
            "missing": [_missing_json(missing) for missing in table.missing],
            "left_out": list(table.left_out),
        }
        for table in tables
    ]  # fmt: skip


def cell_json(cell: Cell) -> dict[str, Any]:
    """Return one cell as JSON values; `difference` is null unless the protocol is the same."""
    reference, best = cell.reference, cell.best
    found = best.interval if best else None
    same = best is not None and best.verdict.status == "same"
    spread = Sample(reference.seeds).deviation if reference.seeds else reference.deviation
    return {
        "paper": {"text": cell.printed, "value": float(reference.value), "seeds": list(reference.seeds),
                  "deviation": spread},
        "ours": _ours_json(best),
        "difference": best.raw_difference if best and same else None,
        "difference_not_comparable": best.raw_difference if best and not same else None,
        "interval": {"low": found.low, "high": found.high, "basis": found.basis, "outside": found.outside}
        if found else None,
        "verdict": _verdict_json(best),
        "others": [{"ours": _ours_json(other), "verdict": _verdict_json(other)} for other in cell.others],
        "unused": reference.unused or None,
        "footnotes": list(cell.marks),
    }  # fmt: skip


def _ours_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    ours = comparison.measured.to_json()
    numbers = {key: ours[key] for key in ("mean", "deviation", "values")}
    encoder = comparison.group.encoder.name
    return {**numbers, "metric": comparison.metric, "runs": ours["runs"], "encoder": encoder}


def _verdict_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    verdict = comparison.verdict
    return {
        "status": verdict.status,
        "text": verdict.text,
        "differs": [_difference_json(one) for one in verdict.differs],
        "unknown": list(verdict.unknown),
        "missing": list(verdict.missing),
    }


def _difference_json(one: Difference) -> dict[str, Any]:
    return {"key": one.key, "ours": one.ours, "paper": one.theirs}


def _missing_json(missing: Missing) -> dict[str, Any]:
    cost = {"a100_hours": missing.cost.hours, "source": missing.cost.source} if missing.cost else None
    return {"cells": list(missing.cells), "commands": list(missing.commands), "cost": cost}


_WRITERS: dict[str, Callable[[Sequence[PaperTable]], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": to_csv,
    "json": lambda tables: json.dumps(to_json(tables), indent=2, ensure_ascii=False) + "\n",
    "html": page,
}
