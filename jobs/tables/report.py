"""The report: everything under a runs root in one self-contained HTML file.

    mimbench report                   writes <runs root>/report.html
    mimbench report --study NAME      only the runs of one study and the pretrainings of their encoders

Contents: the table and its findings in words, sweeps with their pictures, the papers' tables with these runs, cost and
benefit of pretraining, categories side by side, loss and metric curves of pretrained and scratch encoders, the pictures
of the tasks (as many as fit into a page of 20 MB), all runs with their data, and the failed runs with reasons.

The page has no scripts and makes no requests: pictures and styles are in the file, and a content security policy
forbids anything else. It follows the reader's colour scheme and can be printed. Page and styles are in
`report.html.jinja`, which escapes everything from runs. Does not import torch.
"""

from __future__ import annotations

import base64
import itertools
import logging
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.task import Categories
from mimbench.engine.run.task import Picture as Described
from mimbench.jobs.runs import records, status
from mimbench.jobs.runs.encoders import Encoder, digest, encoders_of, maker_of, makers
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import known, makes_encoders, metric_of, tasks
from mimbench.jobs.tables import compare, curves, dots, drawing, paper_table, sweep_picture, sweep_results, table
from mimbench.jobs.tables.formats_html import environment
from mimbench.jobs.tables.sections import Section, sections

log = logging.getLogger(__name__)

TEMPLATE = "report.html.jinja"
LOG_LINES = 15
CHARTS = 60  # most charts of curves, and of the terms of losses
PICTURES = 9_000_000  # bytes of all pictures on the page, which base64 makes a third larger
MEDIA = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
UNFINISHED = {
    "failed": "failed",
    "interrupted": "was interrupted; run again, it resumes from its last checkpoint",
    "lost": "was lost: its process no longer exists; run again, it resumes from its last checkpoint",
    "damaged": "is damaged",
}


@dataclass(frozen=True)
class Picture:
    """An image of a run, embedded in the page."""

    url: str  # data:image/png;base64,...
    heading: str
    caption: str
    width: int | None  # pixels, if the file states it
    height: int | None


@dataclass(frozen=True)
class Results:
    """The table of one data set and protocol, with its charts and findings."""

    section: Section
    overview: dots.Overview | None
    scatters: list[dots.Scatter]
    findings: list[str]


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs, with its details."""

    anchor: str
    record: Record
    encoder: Encoder
    seconds: str
    rate: str
    memory: str
    device: str
    commit: str
    config: str


@dataclass(frozen=True)
class Problem:
    """A run that did not finish, and why."""

    anchor: str
    name: str
    what: str
    why: str
    log: str


def write_report(root: Path, path: Path, study: str | None = None) -> Path:
    """Write the report of every run under `root`, or of those of `study`, to `path`, atomically, and return `path`.

    Raises:
        ValueError: if `root` or `study` has no runs.
        OSError: if `path` cannot be written.
    """
    found = records.read(root)
    if not found:
        raise ValueError(f"no runs under {root}; start some with `mimbench demo` or `mimbench run RECIPE`")
    chosen = found if study is None else _of_study(found, root, study)
    write_text(path, _page(chosen, root, f"mimbench report: {study}" if study else "mimbench report"))
    return path


def _of_study(found: Sequence[Record], root: Path, study: str) -> list[Record]:
    """Return the runs of a study and the pretrainings of their encoders."""
    named = {row.run.path for row in status.rows(root, study)}  # raises for an unknown study
    made_by = makers(found)
    wanted = [record for record in found if record.run.path in named]
    before = {maker.run.path for record in wanted if (maker := maker_of(record, made_by)[0])}
    return [record for record in found if record.run.path in named | before]


def _page(found: Sequence[Record], root: Path, title: str) -> str:
    encoders = encoders_of(found)
    galleries, left_out = _galleries(found, encoders)
    styles = drawing.styles(encoders.values())
    swept = sweep_results.sweeps(root, found)
    drawn = curves.charts(found, encoders, styles, {path: result.name for result in swept for path in result.runs})
    major, minor = ([chart for chart in drawn if chart.minor == is_minor] for is_minor in (False, True))
    rows, hours = table.rows_of(found), dots.hours_of(found, encoders)
    parts = [
        Results(part, dots.overview(part, styles), dots.scatters(part, hours, styles), findings(part.rows))
        for part in sections(rows)
    ]
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            parts=parts,
            lead=lead(rows),
            hues=drawing.generated_hues(styles.values()),
            colours=sorted(style.colour for style in styles.values()),
            glossary=[entry for task in tasks().values() for entry in task.glossary],
            makes_encoders=makes_encoders,
            papers=paper_table.touched(found),
            by_category=_by_category(found, encoders),
            charts=major[:CHARTS],
            minor_charts=minor[:CHARTS],
            charts_left_out=len(major[CHARTS:]) + len(minor[CHARTS:]),
            plot=drawing,
            galleries=galleries,
            left_out=left_out,
            sweeps=[sweep_picture.picture(result) for result in swept],
            wide=sweep_picture,
            anchor=_anchor,
            runs=[_summary(record, encoders[record.run.path]) for record in found if record.state != "damaged"],
            problems=[_problem(record) for record in found if record.state in UNFINISHED],
            versions=_versions(found),
            written=time.strftime("%Y-%m-%d %H:%M %Z"),
        )
    )


def _by_category(found: Sequence[Record], encoders: Mapping[Path, Encoder]) -> list[tuple[str, str, str, list[Any]]]:
    """Return, for each protocol with categories, the latest encoder against the first one (from scratch if it exists).

    Protocols with one category are left out: its value is in the table of results.
    """
    protocols: dict[str, list[Record]] = {}
    for record in found:
        by = _categories_of(record)
        if by is not None and record.result and (record.run.path / by.file).exists():
            protocols.setdefault(digest(table.protocol_of(record)), []).append(record)
    shown = []
    for records_of_one in protocols.values():
        ordered = sorted(records_of_one, key=lambda record: bool(encoders[record.run.path].origin))
        names = (encoders[ordered[0].run.path].name, encoders[ordered[-1].run.path].name)
        if names[0] != names[1] and len(changes := _changes(ordered[0], ordered[-1])) > 1:
            by = _categories_of(ordered[0])
            shown.append((by.title if by else "", *names, changes))
    return shown


def _categories_of(record: Record) -> Categories | None:
    task = known(record.stage)
    return task.categories if task else None


def _changes(first: Record, second: Record) -> list[Any]:
    """Return the changes by category; empty, with a log message, if a file of categories is damaged."""
    try:
        return compare.bars(compare.categories(first, second))
    except ValueError as error:
        log.warning("%s", error)
        return []


def lead(rows: Sequence[table.Row]) -> str:
    """Return the introduction: which encoders are compared with the baseline, for each data set."""
    by_data: dict[str, list[table.Row]] = {}
    for row in rows:
        if row.data:
            by_data.setdefault(row.data, []).append(row)
    if not by_data:
        return "No evaluation has finished yet, so there is nothing to compare."
    idea = "A pretrained encoder should do better on other tasks than the same network with random initial weights."
    if all(row.kind == "scratch" for row in rows if row.data):
        return f"{idea} Only that baseline has been evaluated so far, on {_listed(by_data)}."
    said: dict[tuple[str, str], list[str]] = {}  # what is said -> data sets
    for data, of_one in by_data.items():
        said.setdefault(_compared(of_one), []).append(data)
    clauses = (f"{what} on {_listed(data)}{more}" for (what, more), data in said.items())
    return f"{idea} Here {'; '.join(clauses)}."


def _compared(rows: Sequence[table.Row]) -> tuple[str, str]:
    """Return what stands before and after the name of a data set: the encoders measured on it, and those compared."""
    measured = dict.fromkeys(row.encoder for row in rows if row.kind == "pretrained")
    compared = {row.encoder for row in rows if row.kind == "gain"}
    if not measured:
        return "only that baseline is measured", ""
    names = [encoder.name for encoder in measured]
    who = _listed(names) if len(names) < 4 else f"{len(names)} encoders"
    are = "is" if len(names) == 1 else "are"
    if len(compared) == len(names):
        return f"{who} {are} measured against that baseline", ""
    if not compared:
        return f"{who} {are} measured", " (the baseline has not been run)"
    return f"{who} {are} measured", f", {len(compared)} of them against that baseline"


def findings(rows: Sequence[table.Row]) -> list[str]:
    """Return the gain from pretraining in words, for each gain row."""
    return [_finding(row) for row in rows if row.kind == "gain"]


def _finding(row: table.Row) -> str:
    gains = _listed(f"{metric_of(metric).title} {gain.text()}" for metric, gain in row.gains.items())
    noise = {gain.interval.outside if gain.interval else None for gain in row.gains.values()}
    within = [
        metric_of(metric).title for metric, gain in row.gains.items() if gain.interval and not gain.interval.outside
    ]
    unknown = [metric_of(metric).title for metric, gain in row.gains.items() if gain.interval is None]
    judged = f" Within the noise over seeds (95 % interval): {_listed(within)}." if within else ""
    if noise == {True}:
        judged = " Each of these is outside the noise over seeds (95 % interval)."
    if unknown:
        which = "" if noise == {None} else f" of {_listed(unknown)}"
        judged += f" The noise{which} is unknown: it takes at least two seeds on both sides."
    return f"{row.recipe} against {row.architecture} from scratch, in points: {gains}.{judged}"


def _listed(parts: Iterable[str]) -> str:
    """Return a list as "a", "a and b" or "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _galleries(
    found: Iterable[Record], encoders: Mapping[Path, Encoder]
) -> tuple[dict[str, list[Picture]], dict[str, int]]:
    """Return the pictures by heading, in the order of the runs, and how many of each did not fit into the page."""
    galleries: dict[str, list[Picture]] = {
        described.heading: [] for task in tasks().values() for described in task.pictures if described.when is None
    }
    left_out: dict[str, int] = {}
    room = PICTURES
    for record in found:
        for file in sorted(record.run.plots.glob("*")):
            if file.suffix in MEDIA:
                heading, size = _described(file.stem, record).heading, file.stat().st_size
                if size > room:
                    left_out[heading] = left_out.get(heading, 0) + 1
                    continue
                room -= size
                galleries.setdefault(heading, []).append(_picture(file, record, encoders[record.run.path]))
    return {heading: pictures for heading, pictures in galleries.items() if pictures}, left_out


def _picture(file: Path, record: Record, encoder: Encoder) -> Picture:
    data = file.read_bytes()
    described = _described(file.stem, record)
    heading, what = described.heading, described.caption
    of = encoder.name if makes_encoders(record.stage) else f"{record.recipe}, encoder {encoder.name}"
    width, height = struct.unpack(">II", data[16:24]) if file.suffix == ".png" and len(data) > 24 else (None, None)
    url = f"data:{MEDIA[file.suffix]};base64,{base64.b64encode(data).decode()}"
    return Picture(url, heading, f"{of} on {record.data}. {what}".strip(), width, height)


def _described(stem: str, record: Record) -> Described:
    """Return the description of a picture from its task; its name if the task has none."""
    task = known(record.stage)
    for one in task.pictures if task else ():
        if one.stem == stem and (one.when is None or str(record.science.get(one.when[0])) == one.when[1]):
            return one
    return Described(stem, stem.replace("_", " ").capitalize(), "")


def _summary(record: Record, encoder: Encoder) -> RunSummary:
    result = record.result or {}
    rate, memory = result.get("images_per_second"), result.get("peak_memory")
    return RunSummary(
        anchor=_anchor(record),
        record=record,
        encoder=encoder,
        seconds=duration(result.get("seconds", _spent(record.attempts))),
        rate=f"{rate:,.0f}" if rate else table.MISSING,
        memory=f"{memory / 2**20:,.0f} MiB" if memory else table.MISSING,
        device=result.get("device") or table.MISSING,
        commit=_short(result.get("commit")),
        config=record.run.config.read_text(encoding="utf-8"),
    )


def _anchor(record: Record) -> str:
    return "run-" + record.name.replace("/", "-").replace(" ", "-")


def _short(commit: str | None) -> str:
    """Return the first digits of a commit, and whether files differed from it."""
    if not commit:
        return table.MISSING
    head, plus, _ = commit.partition("+")
    return head[:10] + plus


def _spent(attempts: Iterable[dict[str, Any]]) -> float:
    """Return the seconds of all ended attempts."""
    return sum(attempt["ended"] - attempt["started"] for attempt in attempts if "ended" in attempt)


def duration(seconds: float) -> str:
    """Return a duration as "48 s", "3 min 20 s" or "5 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _problem(record: Record) -> Problem:
    last = record.attempts[-1] if record.attempts else {}
    why = record.problem or last.get("why", "")
    return Problem(_anchor(record), record.name, UNFINISHED[record.state], why, log_tail(record.run.log))


def log_tail(file: Path, lines: int = LOG_LINES) -> str:
    """Return the last `lines` lines of a log; empty if it does not exist."""
    if not file.exists():
        return ""
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - 200 * lines))
        return "\n".join(handle.read().decode("utf-8", errors="replace").splitlines()[-lines:])


def _versions(found: Iterable[Record]) -> list[tuple[str, int]]:
    """Return each set of versions as text, with its number of runs."""
    sets = sorted(
        ", ".join(f"{package} {version}" for package, version in record.result["versions"].items())
        for record in found if record.result
    )  # fmt: skip
    return [(text, len(list(same))) for text, same in itertools.groupby(sets)]
