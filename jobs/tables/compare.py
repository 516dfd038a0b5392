"""`mimbench compare RUN RUN`: two runs side by side, and whether their protocols are the same.

    mimbench compare mask_rcnn_vitdet_b_100ep-3f mask_rcnn_vitdet_b_100ep-a0
    mimbench compare RUN RUN --output compare.html

First the differences in settings, encoders, facts and versions; then every metric of both runs with the difference
(second minus first, in parentheses if the protocols differ); then the metric of each category, largest change first.
Runs are named as in `mimbench status`. Reads result files only; does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimbench.jobs.runs import records
from mimbench.jobs.runs.encoders import Encoder, encoders_of
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import known, makes_encoders
from mimbench.jobs.tables.matching import equal, shown
from mimbench.jobs.tables.significance import signed
from mimbench.jobs.tables.table import protocol_of

NOT_PROTOCOL = ("seed", "best_epoch", "encoder", "weights", "copy", "traits", "final_norm")  # facts of one encoder


@dataclass(frozen=True)
class Setting:
    """A setting that differs."""

    key: str
    first: str
    second: str


@dataclass(frozen=True)
class Metric:
    """A metric of both runs."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """Return the second value minus the first."""
        return self.second - self.first


@dataclass(frozen=True)
class TwoRuns:
    """Two runs and everything that is compared."""

    names: tuple[str, str]
    encoders: tuple[str, str]
    protocol: tuple[Setting, ...]  # settings that make the numbers incomparable
    pretraining: tuple[Setting, ...]  # settings under comparison, if the protocols are the same
    circumstances: tuple[Setting, ...]  # versions, device, commit
    metrics: tuple[Metric, ...]
    categories: tuple[Metric, ...]
    missing: tuple[str, ...]  # metrics of only one run

    @property
    def categories_title(self) -> str:
        """Return the title of the metric of each category."""
        task = known(self.names[0].partition("/")[0])
        return task.categories.title if task and task.categories else ""

    @property
    def comparable(self) -> bool:
        """Return whether the protocols are the same."""
        return not self.protocol

    def difference(self, metric: Metric, digits: int = 2) -> str:
        """Return the signed difference, in parentheses if the protocols differ."""
        text = signed(metric.difference, digits)
        return text if self.comparable else f"({text})"


def compare(first: Path, second: Path, root: Path) -> TwoRuns:
    """Return two run directories side by side.

    Raises:
        ValueError: if a run is unfinished or damaged, or the stages differ.
    """
    found = records.read(root)
    known = {record.run.path.resolve(): record for record in found}
    outside = [path for path in (first, second) if path.resolve() not in known]
    for path in outside:  # runs from elsewhere
        known |= {record.run.path.resolve(): record for record in records.read(path.resolve().parent.parent)}
    one, other = (_finished(known.get(path.resolve()), path) for path in (first, second))
    if one.stage != other.stage:
        raise ValueError(
            f"{one.name} is of stage {one.stage} and {other.name} of {other.stage}; compare runs of the same stage"
        )
    encoders = encoders_of(list(known.values()))
    return _two(one, other, encoders)


def _finished(record: Record | None, path: Path) -> Record:
    if record is None:
        raise ValueError(f"{path} is not a run directory; `mimbench status` lists the runs")
    if record.state == "damaged":
        raise ValueError(f"{path}: {record.problem}")
    if record.result is None:
        raise ValueError(f"{path} is {record.state}; only finished runs can be compared")
    return record


def _two(one: Record, other: Record, encoders: Mapping[Path, Encoder]) -> TwoRuns:
    pretraining = makes_encoders(one.stage)
    settings = tuple(_settings(protocol_of(one), protocol_of(other)))
    facts = tuple(setting for setting in _settings(_facts(one), _facts(other)) if setting.key not in one.science)
    names = {setting.key for setting in settings}
    protocol = () if pretraining else (*settings, *(fact for fact in facts if fact.key not in names))
    mine, theirs = one.metrics, other.metrics
    both = [name for name in mine if name in theirs]
    made = tuple(encoders[record.run.path] for record in (one, other))
    return TwoRuns(
        names=(one.name, other.name),
        encoders=(_described(one, made[0]), _described(other, made[1])),
        protocol=protocol,
        pretraining=settings if pretraining else (),
        circumstances=tuple(_settings(_circumstances(one), _circumstances(other))),
        metrics=tuple(Metric(name, mine[name], theirs[name]) for name in both),
        categories=tuple(categories(one, other)),
        missing=tuple(name for name in {**mine, **theirs} if name not in both),
    )


def _described(record: Record, encoder: Encoder) -> str:
    return f"{encoder.name}; {record.measured_on}" if record.measured_on else encoder.name


def _facts(record: Record) -> dict[str, Any]:
    facts = (record.result or {}).get("facts", {})
    content = (record.about.get("data") or {}).get("fingerprint")
    content_known = {"content of the data": content} if content else {}
    return {key: value for key, value in facts.items() if key not in NOT_PROTOCOL} | content_known


def _circumstances(record: Record) -> dict[str, Any]:
    result = record.result or {}
    kept = {key: result.get(key) for key in ("device", "commit", "seconds", "images_per_second", "peak_memory")}
    return {**kept, **result.get("versions", {}), "seed": record.science.get("seed")}


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Setting]:
    keys = [key for key in {**one, **other} if not equal(one.get(key), other.get(key))]
    return [Setting(key, _text(one, key), _text(other, key)) for key in keys]


def _text(settings: Mapping[str, Any], key: str) -> str:
    return shown(settings[key]) if settings.get(key) is not None else "–"


def categories(one: Record, other: Record) -> list[Metric]:
    """Return the metric of each category in both runs, largest change first; empty if a run has no such file."""
    first, second = (_of_each_category(record) for record in (one, other))
    both = [Metric(name, first[name], second[name]) for name in first if name in second]
    return sorted(both, key=lambda metric: -abs(metric.difference))


def _of_each_category(record: Record) -> dict[str, float]:
    task = known(record.stage)
    if task is None or task.categories is None:
        return {}
    file, key = record.run.path / task.categories.file, task.categories.key
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {str(entry["name"]): float(entry[key]) for entry in entries if entry.get(key) is not None}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); evaluate the run again") from error


# ------------------------------------------------------------------------------------------------------------ shown


def text(two: TwoRuns, width: int | None = None, categories_shown: int = 20) -> str:
    """Return the comparison as text for a terminal."""
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(Text(f"first:  {two.names[0]} ({two.encoders[0]})\nsecond: {two.names[1]} ({two.encoders[1]})\n"))
    console.print(Text(verdict(two)))
    sections: list[tuple[str, tuple[str, ...], Sequence[Sequence[str]]]] = [
        ("Protocol", ("setting", "first", "second"), _rows(two.protocol)),
        ("Pretraining", ("setting", "first", "second"), _rows(two.pretraining)),
        ("Metrics", ("metric", "first", "second", "difference"), numbers(two, two.metrics)),
        (f"{two.categories_title} by category", ("category", "first", "second", "difference"),
         numbers(two, two.categories[:categories_shown])),
        ("Versions and device", ("", "first", "second"), _rows(two.circumstances)),
    ]  # fmt: skip
    for title, heads, rows in sections:
        if rows:
            shown_rows = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
            for index, head in enumerate(heads):
                shown_rows.add_column(head, justify="right" if index and len(heads) == 4 else "left", overflow="fold")
            for row in rows:
                shown_rows.add_row(*map(Text, row))
            console.print(shown_rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def verdict(two: TwoRuns) -> str:
    """Return one sentence on whether the protocols are the same."""
    if two.comparable:
        return "The protocols are the same. With one run each, the noise of the differences is unknown."
    return "The protocols differ, so differences are in parentheses: they do not measure the encoders alone."


def _rows(settings: Sequence[Setting]) -> list[tuple[str, ...]]:
    return [(setting.key, setting.first, setting.second) for setting in settings]


def numbers(two: TwoRuns, metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
    """Return the metrics as rows of text."""
    return [(one.name, f"{one.first:.2f}", f"{one.second:.2f}", two.difference(one)) for one in metrics]


def to_json(two: TwoRuns) -> dict[str, Any]:
    """Return everything, unrounded; differences only if the protocols are the same."""
    whole = asdict(two)
    for name in ("metrics", "categories"):
        for entry, metric in zip(whole[name], getattr(two, name), strict=True):
            entry["difference"] = metric.difference if two.comparable else None
    return {"comparable": two.comparable, **whole}


def page(two: TwoRuns) -> str:
    """Return the comparison as one HTML page."""
    from mimbench.jobs.tables.formats_html import environment

    changes = bars(two.categories)
    template = environment().get_template("compare.html.jinja")
    title = "Two runs compared"
    return template.render(two=two, verdict=verdict(two), numbers=numbers, rows_of=_rows, bars=changes, title=title)


def bars(metrics: Sequence[Metric]) -> list[tuple[Metric, float]]:
    """Return each category with the length of its bar, in percent of the longest."""
    longest = max((abs(one.difference) for one in metrics), default=0) or 1
    return [(one, round(100 * abs(one.difference) / longest, 1)) for one in metrics]
