"""The pages of `mimbench serve`: runs with their states, one run (curves, log, pictures), and the tables.

    page("/", {}, root)        # a Page: status, type, bytes

Every page is made from the files of the runs when it is asked for; nothing is written. Only files that a run's own
directory lists are given out. Does not import torch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from mimbench.jobs.runs import records
from mimbench.jobs.runs.status import ORDER, Row, ago, rows
from mimbench.jobs.runs.watch import last_lines
from mimbench.jobs.tables import curves, drawing, own, paper, paper_table, table
from mimbench.jobs.tables.formats_html import environment
from mimbench.jobs.tables.formats_html import page as paper_page

LINKS = (("/", "runs"), ("/tables", "tables"))
REFRESH = 5  # seconds; pages of finished runs are not read again
LOG_LINES = 200
HTML, JSON, PNG = "text/html; charset=utf-8", "application/json", "image/png"
AXES = ("step", "epoch", "seconds")  # in metrics.jsonl, of no interest as curves


class Page(NamedTuple):
    """An answer."""

    code: int
    kind: str
    content: bytes


def page(path: str, query: Mapping[str, str], root: Path) -> Page:
    """Return the page at `path`, a decoded path of a URL; 404 for anything else."""
    kind, *parts = [part for part in path.split("/") if part] or ["runs"]
    answer: Page | None = None
    if kind == "runs" and not parts:
        answer = _runs(root, query)
    elif kind == "tables" and not parts:
        answer = _tables(root)
    elif kind == "paper" and (name := "/".join(parts)) in paper.tables():
        answer = Page(200, HTML, paper_page(paper_table.build(name, records.read(root))).encode())
    elif kind == "api" and parts == ["runs"]:
        answer = Page(200, JSON, json.dumps([row.as_json() for row in rows(root)]).encode())
    elif kind == "run" and len(parts) == 2 and (row := _row(root, "/".join(parts))) is not None:
        answer = _run(root, row)
    elif kind == "picture" and len(parts) == 3 and (row := _row(root, "/".join(parts[:2]))) is not None:
        answer = _picture(row, parts[2])
    return answer or Page(404, HTML, _written("live.html.jinja", root, "There is no such page", ""))


def _picture(row: Row, name: str) -> Page | None:
    return Page(200, PNG, (row.run.plots / name).read_bytes()) if name in _pictures(row) else None


def _row(root: Path, name: str) -> Row | None:
    return next((row for row in rows(root) if row.name == name), None)


def _written(template: str, root: Path, title: str, here: str, refresh: int | None = None, **values: Any) -> bytes:
    now = time.strftime("%H:%M:%S")
    common = {
        "title": title,
        "links": LINKS,
        "here": here,
        "refresh": refresh,
        "root": str(root.absolute()),
        "now": now,
    }
    return environment().get_template(template).render(**common, **values).encode()


def _runs(root: Path, query: Mapping[str, str]) -> Page:
    every = rows(root)
    counts = Counter(row.state for row in every)
    studies = sorted({study for row in every for study in row.studies})
    state, study = query.get("state"), query.get("study")
    found = [row for row in every if state in (None, row.state) and (study is None or study in row.studies)]
    filters = [("/", f"all {len(every)}", state is None and study is None)]
    filters += [(_link(state=name), f"{counts[name]} {name}", state == name) for name in ORDER if counts[name]]
    filters += [(_link(study=name), name, study == name) for name in studies]
    content = _written("live_runs.html.jinja", root, "Runs", "/", REFRESH, rows=found, filters=filters, ago=ago)
    return Page(200, HTML, content)


def _link(**query: str) -> str:
    return f"/?{urlencode(query)}"


def _run(root: Path, row: Row) -> Page:
    run = row.run
    try:
        result, attempts = run.read_result() or {}, run.attempts()
    except ValueError:  # damaged: the row says how
        result, attempts = {}, []
    text = run.config.read_text(encoding="utf-8", errors="replace") if run.config.is_file() else ""
    content = _written(
        "live_run.html.jinja",
        root,
        row.name,
        "",
        REFRESH if row.state in ("running", "queued") else None,
        row=row,
        metrics=[(name, f"{value:.6g}") for name, value in result.get("metrics", {}).items()],
        charts=_charts(run.metrics),
        plot=drawing,
        pictures=_pictures(row),
        log="\n".join(last_lines(run.log, LOG_LINES)) if run.log.is_file() else "",
        attempts=[_attempt(attempt) for attempt in attempts],
        config=text,
    )
    return Page(200, HTML, content)


def _attempt(attempt: Mapping[str, Any]) -> dict[str, str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["started"]))
    shown = {key: str(attempt.get(key) or "") for key in ("state", "host", "job", "why")}
    return {"when": when, **shown}


def _charts(file: Path) -> list[curves.Chart]:
    """Return a chart of every number in `metrics.jsonl`, by step."""
    lines = curves.measurements(file)
    keys = dict.fromkeys(key for line in lines for key in line if key not in AXES)
    charts = []
    for key in keys:
        unit, name = (2**20, "memory (MiB)") if key == "memory" else (1, key)
        points = tuple(curves.Point(line["step"], line[key] / unit) for line in lines if {key, "step"} <= line.keys())
        if len(points) > 1:
            charts.append(curves.draw(name, "step", name, [curves.Series(name, drawing.Style(1), (points,))]))
    return charts


def _pictures(row: Row) -> Sequence[str]:
    return sorted(file.name for file in row.run.plots.glob("*.png")) if row.run.plots.is_dir() else []


def _tables(root: Path) -> Page:
    grids = own.grids(table.rows(root))
    papers = [(name, one.title) for name, one in paper.tables().items()]
    return Page(
        200, HTML, _written("live_tables.html.jinja", root, "Results", "/tables", None, grids=grids, papers=papers)
    )
