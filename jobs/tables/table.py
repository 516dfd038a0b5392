"""The table: one row per encoder, pretrained ones beside the same architecture from scratch.

    mimbench table            k-NN, linear, fine-tune top-1 and box and mask AP of every encoder under the runs root
    mimbench table --json     the same with every value, unrounded

Seeds. Runs that differ in nothing but the seed, their own or that of the pretraining before them, share a cell: mean
and sample standard deviation over them. The gain over scratch has the deviation of a difference of two runs.

Protocols. A cell never mixes results whose settings differ. When one encoder was evaluated in two ways, the way that
most encoders share comes first; the other gets rows of its own that say what is different. A gain compares like with
like.

Reads result files only; starts without torch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimbench.jobs.runs import records
from mimbench.jobs.runs.encoders import Encoder, difference, digest, encoder_hash, encoders_of, without
from mimbench.jobs.runs.records import Record
from mimbench.jobs.tables.significance import Values

if TYPE_CHECKING:
    import rich.table

COLUMNS = {
    "knn_top1": "k-NN",
    "fewshot5_ridge_top1": "5-shot",
    "linear_fast_top1": "fast linear",
    "linear_top1": "linear",
    "finetune_top1": "fine-tune",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
}
OPTIONAL = ("fewshot5_ridge_top1", "linear_fast_top1")  # shown once something has been measured so
MISSING = "–"
RECIPE = 24  # characters in a line about what is different


@dataclass(frozen=True)
class Cell(Values):
    """One metric of one encoder under one protocol: the values of its seeds, in percent."""

    data: str = ""
    runs: tuple[str, ...] = ()

    def text(self) -> str:
        """To one decimal, as papers print it."""
        return f"{self.mean:.1f}" + _plus_minus(self.deviation)


@dataclass(frozen=True)
class Gain:
    """Pretrained minus scratch, in points."""

    mean: float
    deviation: float | None

    def text(self) -> str:
        """With its sign."""
        return f"{self.mean:+.1f}".replace("-", "−") + _plus_minus(self.deviation)


@dataclass(frozen=True)
class Row:
    """One encoder under one protocol per column, or the gain of one over scratch."""

    kind: Literal["scratch", "pretrained", "gain"]
    encoder: Encoder
    note: str = ""  # how the protocol differs from that of the rows before
    cells: dict[str, Cell] = field(default_factory=dict)  # by the names of COLUMNS
    gains: dict[str, Gain] = field(default_factory=dict)  # of a gain row
    checkpoints: tuple[str, ...] = ()  # content hashes

    @property
    def recipe(self) -> str:
        """What made the encoder."""
        return self.encoder.name

    @property
    def architecture(self) -> str:
        """The shape of the encoder."""
        return self.encoder.architecture

    def text(self, metric: str) -> str:
        """What the column of `metric` shows."""
        found = self.cells.get(metric) or self.gains.get(metric)
        return found.text() if found else MISSING

    @property
    def seeds(self) -> str:
        """How many runs are behind a cell: "3", or "1–3" where columns differ."""
        return _seeds([self])


@dataclass(frozen=True)
class Measured:
    """One metric of one run."""

    metric: str
    encoder: Encoder
    record: Record

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that defines the protocol."""
        return protocol_of(self.record)

    @cached_property
    def protocol(self) -> str:
        """The same for results that may be compared."""
        return digest(self.settings)


def protocol_of(record: Record) -> dict[str, Any]:
    """The settings of an evaluation, less seed and encoder: two encoders are comparable when these are equal.

    `encoder` goes because it is read only without a checkpoint, and then the architecture is what is compared.
    """
    return without(record.science, {"seed", "checkpoint", "encoder"})


def rows(root: Path) -> list[Row]:
    """The table of every finished run under `root`; empty when there is none.

    A damaged run directory is left out and logged.
    """
    return rows_of(records.read(root))


def rows_of(found: Sequence[Record]) -> list[Row]:
    """The table of runs that were read already."""
    encoders = encoders_of(found)
    checkpoints: dict[Encoder, set[str]] = {}  # content hashes of every encoder that has a row
    for record in found:
        made = encoder_hash(record)
        if made or record.metrics.keys() & COLUMNS.keys():
            used = made or (record.checkpoint or {}).get("hash")
            checkpoints.setdefault(encoders[record.run.path], set()).update({used} if used else ())
    measured = [
        Measured(metric, encoders[record.run.path], record)
        for record in found for metric in COLUMNS if metric in record.metrics
    ]  # fmt: skip
    architectures = dict.fromkeys(encoder.architecture for encoder in checkpoints)
    return [row for architecture in architectures for row in _block(architecture, measured, checkpoints)]


def _block(architecture: str, measured: Sequence[Measured], checkpoints: dict[Encoder, set[str]]) -> list[Row]:
    """The rows of one architecture: for each protocol scratch, then every encoder with its gain."""
    here = [result for result in measured if result.encoder.architecture == architecture]
    encoders = sorted((e for e in checkpoints if e.architecture == architecture), key=lambda e: bool(e.origin))
    columns = {metric: _by_protocol([result for result in here if result.metric == metric]) for metric in COLUMNS}
    block: list[Row] = []
    for variant in range(max(1, *(len(protocols) for protocols in columns.values()))):
        scratch = None
        for encoder in encoders:
            row = _row(encoder, columns, variant, checkpoints[encoder])
            if variant and not row.cells:
                continue
            scratch = scratch if encoder.origin else row
            block += [row, *_gain(row, scratch)]
    return block


def _by_protocol(results: Sequence[Measured]) -> list[list[Measured]]:
    """The results of one column by protocol: first the one that most encoders share, among equals the latest."""
    groups: dict[str, list[Measured]] = {}
    for result in results:
        groups.setdefault(result.protocol, []).append(result)
    return sorted(
        groups.values(),
        key=lambda group: (len({result.encoder for result in group}), max(result.record.started for result in group)),
        reverse=True,
    )


def _row(encoder: Encoder, columns: dict[str, list[list[Measured]]], variant: int, checkpoints: set[str]) -> Row:
    """The row of `encoder` under the protocol that comes `variant`-th in each column."""
    cells: dict[str, Cell] = {}
    notes: dict[str, list[str]] = {}  # what is different -> in which columns
    for metric, protocols in columns.items():
        group = protocols[variant] if variant < len(protocols) else []
        mine = [result.record for result in group if result.encoder == encoder]
        if mine:
            values = tuple(record.metrics[metric] for record in mine)
            cells[metric] = Cell(values, mine[0].data, tuple(record.name for record in mine))
            changes = difference(group[0].settings, protocols[0][0].settings)
            notes.setdefault(changes, []).append(COLUMNS[metric])
    note = "; ".join(f"{', '.join(names)}: {changes}" for changes, names in notes.items() if changes)
    kind: Literal["scratch", "pretrained"] = "pretrained" if encoder.origin else "scratch"
    return Row(kind, encoder, note, cells, checkpoints=tuple(sorted(checkpoints)))


def _gain(row: Row, scratch: Row | None) -> list[Row]:
    """The row that says what pretraining brought, where there is something to compare."""
    if row.kind != "pretrained" or scratch is None:
        return []
    both = [metric for metric in COLUMNS if metric in row.cells and metric in scratch.cells]
    gains = {metric: _minus(row.cells[metric], scratch.cells[metric]) for metric in both}
    return [Row("gain", row.encoder, row.note, gains=gains)] if gains else []


def _minus(one: Cell, other: Cell) -> Gain:
    spreads = [cell.deviation for cell in (one, other) if cell.deviation is not None]
    return Gain(one.mean - other.mean, math.hypot(*spreads) if len(spreads) == 2 else None)


def _plus_minus(deviation: float | None) -> str:
    return "" if deviation is None else f" ± {deviation:.1f}"


def _seeds(table: Iterable[Row]) -> str:
    counts = [len(cell.values) for row in table for cell in row.cells.values()]
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def shown_columns(table: Sequence[Row]) -> dict[str, str]:
    """The columns of a table for people, by metric."""
    measured = {metric for row in table for metric in row.cells}
    return {metric: name for metric, name in COLUMNS.items() if metric not in OPTIONAL or metric in measured}


def several_seeds(table: Iterable[Row]) -> bool:
    """Whether any cell is a mean."""
    return any(len(cell.values) > 1 for row in table for cell in row.cells.values())


def caption(table: Sequence[Row]) -> str:
    """Units, data sets and what ± means, in one line; nothing for an empty table."""
    columns: dict[str, list[str]] = {}  # data sets -> names of the columns measured on them
    for metric, name in COLUMNS.items():
        data = dict.fromkeys(row.cells[metric].data for row in table if metric in row.cells)
        if data:
            columns.setdefault(" and ".join(data), []).append(name)
    if not columns:
        return ""
    one = len(columns) == 1
    where = "; ".join(data if one else f"{', '.join(names)} on {data}" for data, names in columns.items())
    spread = f" ± is the standard deviation over {_seeds(table)} seeds." if several_seeds(table) else ""
    return f"Data: {where}. Top-1 accuracy and average precision in %.{spread}"


def render(table: Sequence[Row]) -> rich.table.Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, caption=Text(caption(table)), caption_justify="left")
    shown.add_column("recipe", no_wrap=True)
    shown.add_column("encoder", no_wrap=True)
    columns = shown_columns(table)
    for name in columns.values():  # where the terminal is narrow these give way, with the deviation on a second line
        heading = name.replace("fine-", "fine-\n") if several_seeds(table) else name
        shown.add_column(heading, justify="right", overflow="fold")
    for row in table:
        numbers = (row.text(metric).replace("± ", "±") for metric in columns)
        style = {"gain": "dim", "scratch": "", "pretrained": "bold"}[row.kind]
        shown.add_row(*map(Text, [*_first_cells(row), *numbers]), style=style)
    return shown


def _first_cells(row: Row) -> list[str]:
    if row.kind == "gain":
        return ["  gain over scratch", ""]
    name, bracket, changes = row.recipe.partition(" (")
    lines = [name, *textwrap.wrap(bracket.strip() + changes, RECIPE), *textwrap.wrap(row.note, RECIPE)]
    return ["\n  ".join(lines), row.architecture]


def to_json(table: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as lists, dictionaries, texts and numbers, unrounded."""
    return [
        {
            "kind": row.kind,
            "recipe": row.recipe,
            "encoder": row.architecture,
            "note": row.note,
            "checkpoints": list(row.checkpoints),
            "metrics": {metric: _cell_json(row.cells.get(metric) or row.gains.get(metric)) for metric in COLUMNS},
        }
        for row in table
    ]


def _cell_json(cell: Cell | Gain | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    numbers: dict[str, Any] = {"mean": cell.mean, "deviation": cell.deviation}
    if isinstance(cell, Gain):
        return numbers
    return {**numbers, "values": list(cell.values), "data": cell.data, "runs": list(cell.runs)}
