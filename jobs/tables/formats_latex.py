"""A paper's table for LaTeX: booktabs, ready to paste, footnotes below the table.

    \\usepackage{booktabs}

Nothing else is needed: commands and paths are set in \\texttt, signed numbers in mathematics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mimbench.jobs.tables.paper_table import Cell, PaperTable, heading

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "−": r"$-$", "–": "--", "×": r"$\times$", "γ": r"$\gamma$", "²": r"\textsuperscript{2}",
}  # fmt: skip


def latex(tables: Sequence[PaperTable]) -> str:
    """Return one table environment for each table."""
    return "\n".join(_latex(table) for table in tables)


def escape_latex(text: str) -> str:
    """Return `text` with LaTeX characters escaped."""
    return "".join(ESCAPES.get(character, character) for character in text)


def _latex(table: PaperTable) -> str:
    widths = [2 if column.key in table.measured else 1 for column in table.columns]
    lines = [
        f"% {_comment(table.name)}: {_comment(table.paper)}, {_comment(table.source)}, {_comment(table.url)}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape_latex(f'{table.title}. Printed numbers: {table.source} of {table.paper}.')}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table.name)}}}",
        rf"\begin{{tabular}}{{l{'r' * sum(widths)}}}",
        r"\toprule",
        *_heads(table, widths),
        r"\midrule",
        *(_row(table, label, cells) for label, cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if notes := [*_footnotes(table), *(escape_latex(note) for note in table.notes)]:
        lines += [r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [note + r"\par" for note in notes]
        lines.append(r"\end{minipage}")
    lines.append(r"\end{table}")
    for missing in table.missing:
        lines.append(f"% missing: {_comment('; '.join(missing.cells))} ({_comment(missing.text)})")
        lines += [f"%   {_comment(command)}" for command in missing.commands]
    lines += [f"% left out: {_comment(problem)}" for problem in table.left_out]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _heads(table: PaperTable, widths: Sequence[int]) -> list[str]:
    names = [escape_latex(heading(column)) for column in table.columns]
    spans = [rf"\multicolumn{{2}}{{c}}{{{name}}}" if width == 2 else name
             for name, width in zip(names, widths, strict=True)]  # fmt: skip
    lines = [" & ".join(["", *spans]) + r" \\"]
    if max(widths) == 1:
        return lines
    place, rules, below = 2, [], [""]
    for width in widths:
        if width == 2:
            rules.append(rf"\cmidrule(lr){{{place}-{place + 1}}}")
        below += ["paper", "ours"] if width == 2 else [""]
        place += width
    return [*lines, " ".join(rules), " & ".join(below) + r" \\"]


def _row(table: PaperTable, label: str, cells: dict[str, Cell]) -> str:
    texts = [escape_latex(label)]
    for column in table.columns:
        cell = cells.get(column.key)
        texts.append(escape_latex(cell.printed) if cell else "--")
        if column.key in table.measured:
            texts.append(_ours(cell))
    return " & ".join(texts) + r" \\"


def _ours(cell: Cell | None) -> str:
    if cell is None or cell.best is None:
        return "--"
    marks = r"\textsuperscript{" + ",".join(map(str, cell.marks)) + "}"
    return f"{escape_latex(cell.ours)} {_number(cell.difference)}{marks}"


def _number(difference: str) -> str:
    """Return a difference such as `(−0.1)` with mathematical plus and minus."""
    return "$" + difference.replace("−", "-") + "$"


def _footnotes(table: PaperTable) -> list[str]:
    return [rf"\textsuperscript{{{number}}} {escape_latex(text)}" for number, text in enumerate(table.footnotes, 1)]
