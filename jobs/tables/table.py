"""The table: one row per encoder, pretrained ones beside the same architecture from scratch.

    mimbench table            every encoder under the runs root, with its metrics
    mimbench table --json     the same with every value, unrounded

The columns are the metrics described by the installed tasks (`Task.metrics`); metrics of tasks that are not installed
have separate columns, named by their keys.

Seeds. Runs that differ only in the seed (their own or that of their pretraining) share a cell: mean and sample standard
deviation. The gain over scratch has the deviation of a difference of two runs, and with several seeds on both sides the
95 % interval of the difference (significance.py).

Data sets and protocols. Every data set has tables of its own (sections.py), and a cell never mixes results whose
settings differ. If encoders were evaluated under two protocols, the one that most encoders share comes first; the other
gets another table that states the differences. A gain compares results of the same data set and protocol.

Reads result files only; does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mimbench.engine.run.task import Metric
from mimbench.jobs.runs import records
from mimbench.jobs.runs.encoders import Encoder, difference, digest, encoder_hash, encoders_of, without
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import columns, known, metric_of, undescribed
from mimbench.jobs.tables.significance import Interval, Measured, Sample, interval, plus_minus, signed

MISSING = "–"


@dataclass(frozen=True)
class Gain:
    """Pretrained minus scratch, in points."""

    mean: float
    deviation: float | None
    digits: int = 1
    interval: Interval | None = None  # of the difference; None with one seed on a side
    higher_is_better: bool = True

    @property
    def better(self) -> bool | None:
        """Return whether the change is an improvement; None if noise is unknown or may explain the change."""
        if self.interval is None or not self.interval.outside:
            return None
        return (self.mean > 0) == self.higher_is_better

    def text(self) -> str:
        """Return the gain with its sign."""
        return signed(self.mean, self.digits) + plus_minus(self.deviation, self.digits)


@dataclass(frozen=True)
class Row:
    """One encoder on one data set under one protocol per column, or the gain of one over scratch."""

    kind: Literal["scratch", "pretrained", "gain"]
    encoder: Encoder
    note: str = ""  # how the protocol differs from the data set's first table
    cells: dict[str, Measured] = field(default_factory=dict)  # by the key of the metric
    gains: dict[str, Gain] = field(default_factory=dict)  # of a gain row
    checkpoints: tuple[str, ...] = ()  # content hashes
    data: str = ""  # the data set; empty for an encoder that has not been evaluated

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
        return seeds([self])


@dataclass(frozen=True)
class _Result:
    """One metric of one run."""

    metric: str
    encoder: Encoder
    record: Record
    data: str  # the data set's name

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
    settings = without(record.science, {"seed", "checkpoint", "encoder"})
    about = {"files": record.content, "validation": record.measured_on}
    return settings | {key: value for key, value in about.items() if value}


def rows(root: Path) -> list[Row]:
    """Return the table of all finished runs under `root`; empty if there are none.

    A damaged run directory is left out and logged.
    """
    return rows_of(records.read(root))


def rows_of(found: Sequence[Record]) -> list[Row]:
    """Return the table of records that are already read: by data set, protocol and architecture."""
    encoders, metrics = encoders_of(found), _columns_of(found)
    checkpoints: dict[Encoder, set[str]] = {}  # content hashes of every encoder with a row
    for record in found:
        made = encoder_hash(record)
        if made or record.metrics.keys() & metrics.keys():
            used = made or (record.checkpoint or {}).get("hash")
            checkpoints.setdefault(encoders[record.run.path], set()).update({used} if used else ())
    names = data_names(found)
    results: dict[str, list[_Result]] = {}  # by data set
    for record in found:
        for metric in metrics.keys() & record.metrics.keys():
            results.setdefault(names[record.run.path], []).append(
                _Result(metric, encoders[record.run.path], record, names[record.run.path])
            )
    table = [row for of_one in results.values() for row in _of_data_set(list(metrics), of_one, checkpoints)]
    evaluated = {row.encoder for row in table}
    idle = [encoder for encoder in checkpoints if encoder not in evaluated]
    return table + [_row(encoder, {}, 0, checkpoints[encoder]) for encoder in idle]


def data_names(found: Sequence[Record]) -> dict[Path, str]:
    """Return the name of each run's data set: the last part of its path, or all of it if two paths end alike."""
    whole = {record.run.path: str(record.science.get("data", "")).rstrip("/") for record in found}
    paths: dict[str, set[str]] = {}
    for record in found:
        paths.setdefault(record.data_set, set()).add(whole[record.run.path])
    return {
        record.run.path: record.data
        if len(paths[record.data_set]) == 1
        else whole[record.run.path] + record.data.removeprefix(record.data_set)
        for record in found
    }


def _columns_of(found: Sequence[Record]) -> dict[str, Metric]:
    """Return all possible columns: those of the tasks, and all metrics of runs whose task is not installed."""
    foreign = {key: undescribed(key) for record in found if known(record.stage) is None for key in record.metrics}
    return {**columns(), **{key: metric for key, metric in foreign.items() if key not in columns()}}


def _of_data_set(
    metrics: Sequence[str], results: Sequence[_Result], checkpoints: dict[Encoder, set[str]]
) -> Iterator[Row]:
    """Yield the rows of one data set: for each protocol and architecture scratch, then every encoder with its gain."""
    grouped = {metric: _by_protocol([one for one in results if one.metric == metric]) for metric in metrics}
    encoders = list(dict.fromkeys(one.encoder for one in results))
    architectures = dict.fromkeys(encoder.architecture for encoder in encoders)
    for variant in range(max(len(protocols) for protocols in grouped.values())):
        for architecture in architectures:
            scratch = None
            here = [encoder for encoder in encoders if encoder.architecture == architecture]
            for encoder in sorted(here, key=lambda one: bool(one.origin)):
                row = _row(encoder, grouped, variant, checkpoints[encoder])
                if not row.cells:
                    continue
                scratch = scratch if encoder.origin else row
                yield from (row, *_gain(row, scratch))


def _by_protocol(results: Sequence[_Result]) -> list[list[_Result]]:
    """Return the results of one column by protocol: first the one that most encoders share, in a tie the latest."""
    groups: dict[str, list[_Result]] = {}
    for result in results:
        groups.setdefault(result.protocol, []).append(result)
    return sorted(
        groups.values(),
        key=lambda group: (len({result.encoder for result in group}), max(result.record.started for result in group)),
        reverse=True,
    )


def _row(encoder: Encoder, grouped: dict[str, list[list[_Result]]], variant: int, checkpoints: set[str]) -> Row:
    """Return the row of `encoder` under the `variant`-th protocol of each column."""
    cells: dict[str, Measured] = {}
    notes: dict[str, list[str]] = {}  # difference -> columns
    for metric, protocols in grouped.items():
        if variant >= len(protocols):
            continue
        group, described = protocols[variant], metric_of(metric)
        changes = difference(group[0].settings, protocols[0][0].settings)
        notes.setdefault(changes, []).append(described.title)
        mine = [result.record for result in group if result.encoder == encoder]
        if mine:
            values, names = tuple(one.metrics[metric] for one in mine), tuple(one.name for one in mine)
            digits = described.quantity.digits
            cells[metric] = Measured(values, names, digits, digits, group[0].data)
    note = "; ".join(f"{', '.join(titles)}: {changes}" for changes, titles in notes.items() if changes)
    kind: Literal["scratch", "pretrained"] = "pretrained" if encoder.origin else "scratch"
    data = next((cell.data for cell in cells.values()), "")
    return Row(kind, encoder, note, cells, checkpoints=tuple(sorted(checkpoints)), data=data)


def _gain(row: Row, scratch: Row | None) -> list[Row]:
    """Return the row with the gain over scratch, if there is anything to compare."""
    if row.kind != "pretrained" or scratch is None:
        return []
    both = [metric for metric in row.cells if metric in scratch.cells]
    gains = {metric: _minus(metric_of(metric), row.cells[metric], scratch.cells[metric]) for metric in both}
    return [Row("gain", row.encoder, row.note, gains=gains, data=row.data)] if gains else []


def _minus(metric: Metric, one: Measured, other: Measured) -> Gain:
    spreads = [cell.deviation for cell in (one, other) if cell.deviation is not None]
    return Gain(
        one.mean - other.mean,
        math.hypot(*spreads) if len(spreads) == 2 else None,
        one.digits,
        interval(Sample(one.values), Sample(other.values)),
        metric.quantity.better == "higher",
    )


def seeds(table: Iterable[Row]) -> str:
    """Return the number of runs behind each cell: "3", or "1–3" if cells differ; empty without cells."""
    counts = [len(cell.values) for row in table for cell in row.cells.values()]
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def all_columns(table: Sequence[Row]) -> dict[str, Metric]:
    """Return every possible column by key: those of the installed tasks, and all other measured metrics."""
    found = columns()
    return found | {key: metric_of(key) for row in table for key in row.cells if key not in found}


def to_json(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON values, unrounded."""
    every = all_columns(table)
    return [
        {
            "kind": row.kind,
            "recipe": row.recipe,
            "encoder": row.architecture,
            "data": row.data,
            "note": row.note,
            "checkpoints": list(row.checkpoints),
            "metrics": {metric: _cell_json(row.cells.get(metric) or row.gains.get(metric)) for metric in every},
        }
        for row in table
    ]


def _cell_json(cell: Measured | Gain | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return cell.to_json() if isinstance(cell, Measured) else {"mean": cell.mean, "deviation": cell.deviation}
