"""Tables as data: all finished runs, or a paper's table with our runs in it.

    for row in table("crossmae/table2").rows:
        for column, cell in row.cells.items():
            print(row.label, column, cell.published, cell.measured)

The same numbers as `mimbench table` prints, unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.jobs.runs import records
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.tables import formats, paper, paper_table
from mimbench.jobs.tables import table as own_table
from mimbench.jobs.tables.sections import sections
from mimbench.records import data_frame

if TYPE_CHECKING:
    import pandas

    from mimbench.jobs.tables.paper_table import PaperTable

COMPUTE = ("compute", "crossmae/compute")


@dataclass(frozen=True)
class Cell:
    """One cell of a table. Numbers are in the column's unit, usually percent; None if missing."""

    published: float | None = None  # printed by the paper
    measured: float | None = None  # ours: the mean over seeds
    deviation: float | None = None  # ours: the sample standard deviation over seeds
    values: tuple[float, ...] = ()  # ours, one for each seed
    difference: float | None = None  # measured - published; for a row "gain over scratch" see `Row.kind`
    comparable: bool | None = None  # whether the protocols are the same; None: nothing to compare
    runs: tuple[str, ...] = ()  # directories of our runs, below the runs root
    notes: tuple[str, ...] = ()  # notes on the difference, and why numbers are not comparable


@dataclass(frozen=True)
class Row:
    """One row; `cells` by the keys of the table's columns, without empty cells."""

    label: str
    cells: Mapping[str, Cell]
    kind: str = (
        "paper"  # in the table of all runs: scratch, pretrained, or gain (pretrained minus scratch, in `measured`)
    )
    note: str = ""  # how its protocol differs from that of the data set's first rows
    data: str = ""  # in the table of all runs: the data set


@dataclass(frozen=True)
class Table:
    """A table: columns by key, rows, and the notes below it."""

    name: str
    title: str
    source: str  # where it is printed; empty for the table of all runs
    columns: Mapping[str, str]  # key -> title
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = field(default=(), repr=False)  # commands that fill the empty cells

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one flat dictionary for each cell: table, row, kind, data, column, and the fields of `Cell`."""
        return [
            {
                "table": self.name,
                "row": row.label,
                "kind": row.kind,
                "data": row.data,
                "column": self.columns[key],
                "published": cell.published,
                "measured": cell.measured,
                "deviation": cell.deviation,
                "seeds": len(cell.values),
                "difference": cell.difference,
                "comparable": cell.comparable,
                "notes": " ".join(cell.notes),
            }
            for row in self.rows
            for key, cell in row.cells.items()
        ]

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas DataFrame: a row for each cell, with the columns of `to_dicts`.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        return data_frame(self.to_dicts())


def table(name: str | None = None, root: str | Path | None = None) -> Table:
    """Return a table: of all finished runs, or a paper's with our runs beside the published numbers.

    Args:
        name: a paper's table, such as "crossmae/table2" (`mimbench papers list` lists them). None: the table of all
            finished runs, a row for each encoder and protocol.
        root: where the runs are; by default $MIMBENCH_RUNS or ./runs.

    Raises:
        ValueError: if the name is unknown (the message offers the nearest) or stands for several tables.
    """
    found = records.read(runs_root() if root is None else Path(root).expanduser())
    if name is None:
        return _own(own_table.rows_of(found))
    if name in COMPUTE:
        raise ValueError(f"{name} is text, not numbers; `mimbench table {name} --format json` prints it")
    names = paper.find(name)
    if len(names) > 1:
        raise ValueError(f"{name} has {len(names)} tables; name one of {', '.join(names)}")
    return _published(paper_table.build(names[0], found)[0])


def _published(built: PaperTable) -> Table:
    [content] = formats.to_json([built])
    rows = [
        Row(row["label"], {key: _cell(cell, content["footnotes"]) for key, cell in row["cells"].items()})
        for row in content["rows"]
    ]
    return Table(
        name=content["table"],
        title=content["title"],
        source=f"{content['paper']}, {content['source']}",
        columns={column.key: paper_table.heading(column) for column in built.columns},
        rows=tuple(rows),
        notes=(*content["notes"], *content["left_out"]),
        commands=tuple(dict.fromkeys(command for one in content["missing"] for command in one["commands"])),
    )


def _cell(cell: Mapping[str, Any], footnotes: Sequence[str]) -> Cell:
    ours, same, other = cell["ours"] or {}, cell["difference"], cell["difference_not_comparable"]
    notes = [footnotes[mark - 1] for mark in cell["footnotes"]]
    return Cell(
        published=cell["paper"]["value"],
        measured=ours.get("mean"),
        deviation=ours.get("deviation"),
        values=tuple(ours.get("values", ())),
        difference=other if same is None else same,
        comparable=same is not None if ours else None,
        runs=tuple(ours.get("runs", ())),
        notes=tuple([*notes, cell["unused"]] if cell["unused"] else notes),
    )


def _own(rows: Sequence[own_table.Row]) -> Table:
    parts = sections(rows)
    shown = {key for section in parts for key in section.columns}
    columns = {key: metric.title for key, metric in own_table.all_columns(rows).items() if key in shown}
    return Table(
        name="runs",
        title="All finished runs",
        source="",
        columns=columns,
        rows=tuple(_own_row(row, columns) for row in own_table.to_json(rows)),
        notes=tuple(section.caption for section in parts if section.caption),
    )


def _own_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    cells = {
        key: Cell(
            measured=cell["mean"],
            deviation=cell["deviation"],
            values=tuple(cell.get("values", ())),
            runs=tuple(cell.get("runs", ())),
        )
        for key, cell in row["metrics"].items()
        if cell is not None and key in columns
    }
    return Row(f"{row['recipe']}, {row['encoder']}", cells, row["kind"], row["note"], row["data"])
