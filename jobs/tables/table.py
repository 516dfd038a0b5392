"""The table: one row per encoder, pretrained ones beside the same architecture from scratch.

    mimbench table            every encoder under the runs root, with its metrics
    mimbench table --json     the same with every value, unrounded

The columns are the metrics described by the installed tasks (`Task.metrics`); metrics of tasks that are not installed
have separate columns, named by their keys.

Seeds. Runs that differ only in the seed (their own or that of their pretraining) share a cell: mean and sample standard
deviation. The gain over scratch has the deviation of a difference of two runs.

Protocols. A cell never mixes results whose settings differ. If an encoder was evaluated under two protocols, the one
that most encoders share comes first; the other gets separate rows that state the differences. A gain compares results
of the same protocol.

Reads result files only; does not import torch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimbench.engine.run.task import Metric
from mimbench.jobs.runs import records
from mimbench.jobs.runs.encoders import Encoder, difference, digest, encoder_hash, encoders_of, without
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import columns, known, metric_of, undescribed
from mimbench.jobs.tables.significance import Values

if TYPE_CHECKING:
    import rich.table

MISSING = "–"
RECIPE = 24  # width in characters of a line about differences


@dataclass(frozen=True)
class Cell(Values):
    """One metric of one encoder under one protocol: its values over seeds, in the metric's unit."""

    data: str = ""
    runs: tuple[str, ...] = ()
    digits: int = 1  # decimals of the metric's quantity

    def text(self) -> str:
        """Return the cell's text; percent have one decimal, as in papers."""
        return f"{self.mean:.{self.digits}f}" + _plus_minus(self.deviation, self.digits)


@dataclass(frozen=True)
class Gain:
    """Pretrained minus scratch, in points."""

    mean: float
    deviation: float | None
    digits: int = 1
    better: bool | None = None  # whether the change is an improvement; None without a change

    def text(self) -> str:
        """Return the gain with its sign."""
        return f"{self.mean:+.{self.digits}f}".replace("-", "−") + _plus_minus(self.deviation, self.digits)


@dataclass(frozen=True)
class Row:
    """One encoder under one protocol per column, or the gain of one over scratch."""

    kind: Literal["scratch", "pretrained", "gain"]
    encoder: Encoder
    note: str = ""  # how the protocol differs from the rows above
    cells: dict[str, Cell] = field(default_factory=dict)  # by the key of the metric
    gains: dict[str, Gain] = field(default_factory=dict)  # of a gain row
    checkpoints: tuple[str, ...] = ()  # content hashes

    @property
    def recipe(self) -> str:
        """Return the recipe that made the encoder."""
        return self.encoder.name

    @property
    def architecture(self) -> str:
        """Return the architecture of the encoder."""
        return self.encoder.architecture

    def text(self, metric: str) -> str:
        """Return the text in the column of `metric`."""
        found = self.cells.get(metric) or self.gains.get(metric)
        return found.text() if found else MISSING

    @property
    def seeds(self) -> str:
        """Return the number of runs behind each cell: "3", or "1–3" if columns differ."""
        return _seeds([self])


@dataclass(frozen=True)
class Measured:
    """One metric of one run."""

    metric: str
    encoder: Encoder
    record: Record

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return all settings of the protocol."""
        return protocol_of(self.record)

    @cached_property
    def protocol(self) -> str:
        """Return a key that is equal for comparable results."""
        return digest(self.settings)


def protocol_of(record: Record) -> dict[str, Any]:
    """Return the settings of an evaluation without seed and encoder: if they are equal, two encoders are comparable.

    `encoder` is left out because it is used only without a checkpoint, and then the architecture is compared.
    """
    return without(record.science, {"seed", "checkpoint", "encoder"})


def rows(root: Path) -> list[Row]:
    """Return the table of all finished runs under `root`; empty if there are none.

    A damaged run directory is left out and logged.
    """
    return rows_of(records.read(root))


def rows_of(found: Sequence[Record]) -> list[Row]:
    """Return the table of records that are already read."""
    encoders, metrics = encoders_of(found), _columns_of(found)
    checkpoints: dict[Encoder, set[str]] = {}  # content hashes of every encoder with a row
    for record in found:
        made = encoder_hash(record)
        if made or record.metrics.keys() & metrics.keys():
            used = made or (record.checkpoint or {}).get("hash")
            checkpoints.setdefault(encoders[record.run.path], set()).update({used} if used else ())
    measured = [
        Measured(metric, encoders[record.run.path], record)
        for record in found for metric in metrics if metric in record.metrics
    ]  # fmt: skip
    architectures = dict.fromkeys(encoder.architecture for encoder in checkpoints)
    return [row for architecture in architectures for row in _block(architecture, list(metrics), measured, checkpoints)]


def _columns_of(found: Sequence[Record]) -> dict[str, Metric]:
    """Return all possible columns: those of the tasks, and all metrics of runs whose task is not installed."""
    foreign = {key: undescribed(key) for record in found if known(record.stage) is None for key in record.metrics}
    return {**columns(), **{key: metric for key, metric in foreign.items() if key not in columns()}}


def _block(
    architecture: str, metrics: Sequence[str], measured: Sequence[Measured], checkpoints: dict[Encoder, set[str]]
) -> list[Row]:
    """Return the rows of one architecture: for each protocol from scratch, then every encoder with its gain."""
    here = [result for result in measured if result.encoder.architecture == architecture]
    encoders = sorted((e for e in checkpoints if e.architecture == architecture), key=lambda e: bool(e.origin))
    grouped = {metric: _by_protocol([result for result in here if result.metric == metric]) for metric in metrics}
    block: list[Row] = []
    for variant in range(max([1, *(len(protocols) for protocols in grouped.values())])):
        scratch = None
        for encoder in encoders:
            row = _row(encoder, grouped, variant, checkpoints[encoder])
            if variant and not row.cells:
                continue
            scratch = scratch if encoder.origin else row
            block += [row, *_gain(row, scratch)]
    return block


def _by_protocol(results: Sequence[Measured]) -> list[list[Measured]]:
    """Return the results of one column by protocol: first the one that most encoders share, in a tie the latest."""
    groups: dict[str, list[Measured]] = {}
    for result in results:
        groups.setdefault(result.protocol, []).append(result)
    return sorted(
        groups.values(),
        key=lambda group: (len({result.encoder for result in group}), max(result.record.started for result in group)),
        reverse=True,
    )


def _row(encoder: Encoder, grouped: dict[str, list[list[Measured]]], variant: int, checkpoints: set[str]) -> Row:
    """Return the row of `encoder` under the `variant`-th protocol of each column."""
    cells: dict[str, Cell] = {}
    notes: dict[str, list[str]] = {}  # difference -> columns
    for metric, protocols in grouped.items():
        group = protocols[variant] if variant < len(protocols) else []
        mine = [result.record for result in group if result.encoder == encoder]
        if mine:
            values = tuple(record.metrics[metric] for record in mine)
            described = metric_of(metric)
            names = tuple(record.name for record in mine)
            cells[metric] = Cell(values, mine[0].data, names, described.quantity.digits)
            changes = difference(group[0].settings, protocols[0][0].settings)
            notes.setdefault(changes, []).append(described.title)
    note = "; ".join(f"{', '.join(titles)}: {changes}" for changes, titles in notes.items() if changes)
    kind: Literal["scratch", "pretrained"] = "pretrained" if encoder.origin else "scratch"
    return Row(kind, encoder, note, cells, checkpoints=tuple(sorted(checkpoints)))


def _gain(row: Row, scratch: Row | None) -> list[Row]:
    """Return the row with the gain over scratch, if there is anything to compare."""
    if row.kind != "pretrained" or scratch is None:
        return []
    both = [metric for metric in row.cells if metric in scratch.cells]
    gains = {metric: _minus(metric_of(metric), row.cells[metric], scratch.cells[metric]) for metric in both}
    return [Row("gain", row.encoder, row.note, gains=gains)] if gains else []


def _minus(metric: Metric, one: Cell, other: Cell) -> Gain:
    spreads = [cell.deviation for cell in (one, other) if cell.deviation is not None]
    gain = one.mean - other.mean
    better = (gain > 0) == (metric.quantity.better == "higher") if gain else None
    return Gain(gain, math.hypot(*spreads) if len(spreads) == 2 else None, one.digits, better)


def _plus_minus(deviation: float | None, digits: int) -> str:
    return "" if deviation is None else f" ± {deviation:.{digits}f}"


def _seeds(table: Iterable[Row]) -> str:
    counts = [len(cell.values) for row in table for cell in row.cells.values()]
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def all_columns(table: Sequence[Row]) -> dict[str, Metric]:
    """Return every possible column by key: those of the installed tasks, and all other measured metrics."""
    found = columns()
    return found | {key: metric_of(key) for row in table for key in row.cells if key not in found}


def shown_columns(table: Sequence[Row]) -> dict[str, Metric]:
    """Return the columns of a table for people, by key."""
    measured = {key for row in table for key in row.cells}
    every = all_columns(table)
    return {key: metric for key, metric in every.items() if metric.column == "always" or key in measured}


def several_seeds(table: Iterable[Row]) -> bool:
    """Return whether any cell is a mean."""
    return any(len(cell.values) > 1 for row in table for cell in row.cells.values())


def caption(table: Sequence[Row]) -> str:
    """Return units, data sets and the meaning of ± in one line; empty for an empty table."""
    measured: dict[str, list[str]] = {}  # data sets -> titles of the columns measured on them
    shown = shown_columns(table)
    for key, metric in shown.items():
        data = dict.fromkeys(row.cells[key].data for row in table if key in row.cells)
        if data:
            measured.setdefault(" and ".join(data), []).append(metric.title)
    if not measured:
        return ""
    one = len(measured) == 1
    where = "; ".join(data if one else f"{', '.join(names)} on {data}" for data, names in measured.items())
    spread = f" ± is the standard deviation over {_seeds(table)} seeds." if several_seeds(table) else ""
    return f"Data: {where}. {_units(shown.values())}{spread}"


def _units(metrics: Iterable[Metric]) -> str:
    """Return a sentence for each unit: `Top-1 accuracy and average precision in %.`"""
    by_unit: dict[str, dict[str, None]] = {}
    for metric in metrics:
        if metric.quantity.name:
            by_unit.setdefault(metric.quantity.unit, {})[metric.quantity.name] = None
    sentences = []
    for unit, names in by_unit.items():
        *first, last = names
        text = f"{', '.join(first)} and {last}" if first else last
        sentences.append(f"{text[0].upper()}{text[1:]}{f' in {unit}' if unit else ''}.")
    return " ".join(sentences)


def render(table: Sequence[Row]) -> rich.table.Table:
    """Return the table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, caption=Text(caption(table)), caption_justify="left")
    shown.add_column("recipe", no_wrap=True)
    shown.add_column("encoder", no_wrap=True)
    shown_metrics = shown_columns(table)
    for metric in shown_metrics.values():  # on a narrow terminal these shrink, with the deviation on a second line
        heading = metric.title.replace("-", "-\n") if several_seeds(table) and len(metric.title) > 6 else metric.title
        shown.add_column(heading, justify="right", overflow="fold")
    for row in table:
        numbers = (row.text(key).replace("± ", "±") for key in shown_metrics)
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
    """Return the rows as JSON values, unrounded."""
    every = all_columns(table)
    return [
        {
            "kind": row.kind,
            "recipe": row.recipe,
            "encoder": row.architecture,
            "note": row.note,
            "checkpoints": list(row.checkpoints),
            "metrics": {metric: _cell_json(row.cells.get(metric) or row.gains.get(metric)) for metric in every},
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
