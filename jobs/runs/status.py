"""List all runs under a root, one line each: `mimbench status`, `mimbench watch`, `mimbench logs`.

Reads a few small files of each run, and the configs of running ones only: 1,000 runs in well under a second.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.records import record_of
from mimbench.jobs.runs.states import States, hand_in_what_waits
from mimbench.jobs.runs.watch import Watch, summary
from mimbench.jobs.studies.budget import held_runs
from mimbench.jobs.studies.study_registry import must_be_known, studies

if TYPE_CHECKING:
    from rich.table import Table

ORDER = ("running", "queued", "blocked", "failed", "damaged", "lost", "interrupted", "new", "stopped", "done")
STYLES = {"running": "cyan", "done": "green", "failed": "red", "damaged": "red", "blocked": "red", "lost": "yellow",
          "interrupted": "yellow", "queued": "blue"}  # fmt: skip
NARROW = 110  # characters of a screen below which a run takes two lines
REFRESH = 2.0  # seconds between two updates of `watch` and `logs -f`
PATIENCE = 60.0  # seconds between two attempts of `watch` to submit runs to a scheduler that did not answer


@dataclass(frozen=True)
class Row:
    """A run at one moment."""

    run: RunDir
    name: str  # `stage/recipe-identity`
    recipe: str
    label: str
    studies: tuple[str, ...]
    state: str
    share: float | None  # of the steps, 0 to 1, of a running run
    text: str  # metrics, progress, or the reason of a failure
    started: float | None  # seconds since 1970, first start
    changed: float | None  # last sign of life or end
    attempts: int

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON, with the metrics and the marks of a finished run."""
        fields = ("name", "recipe", "label", "state", "share", "text", "started", "changed", "attempts")
        shown = {
            "run": str(self.run.path),
            "studies": self.studies,
            **{field: getattr(self, field) for field in fields},
        }
        record = record_of(self.run) if self.state == "done" else None
        return {
            **shown,
            "metrics": record.metrics if record else {},
            "measured_on": (record.measured_on or None) if record else None,
        }


def rows(root: Path, study: str | None = None, state: str | None = None) -> list[Row]:
    """Return the runs under `root`, optionally only those of one study or in one state.

    Raises:
        ValueError: if the study was never submitted here.
    """
    if study is not None:
        must_be_known(root, study)
    listed = studies(root)
    labels: dict[str, dict[str, str]] = {}  # run -> study -> label
    for name, runs in listed.items():
        for run, label in runs.items():
            labels.setdefault(run, {})[name] = label
    states, held = States(root), _held(root)
    found = [
        _row(run, name, labels.get(name, {}), states, held.get(name, ""))
        for name, run in _runs(root)
        if study is None or study in labels.get(name, {})
    ]
    return sorted(
        (row for row in found if state in (None, row.state)),
        key=lambda row: (ORDER.index(row.state) if row.state in ORDER else 0, -(row.changed or 0), row.name),
    )


def _held(root: Path) -> dict[str, str]:
    """Return the runs that a budget held when their study was last submitted: run -> study."""
    try:
        return held_runs(root)
    except ValueError:  # a damaged file, which the next submission names
        return {}


def _runs(root: Path) -> Iterator[tuple[str, RunDir]]:
    for stage in sorted(_folders(root)):
        for folder in sorted(_folders(root / stage)):
            run = RunDir(root / stage / folder)
            if run.about.is_file():
                yield f"{stage}/{folder}", run


def _folders(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def _row(run: RunDir, name: str, of: dict[str, str], states: States, held: str = "") -> Row:
    label = next(iter(of.values()), "")
    try:
        about, state, attempts = run.read_about(), states.of(run), run.attempts()
        share, text = _words(run, state, attempts, states)
        if held and state in ("new", "interrupted", "lost"):
            text = f"held by the budget of {held}" + (f"; {text}" if text else "")
    except (ValueError, OSError) as error:
        return Row(run, name, name.partition("/")[2], label, tuple(of), "damaged", None, str(error), None, None, 0)
    started = float(attempts[0]["started"]) if attempts else None
    changed = float(attempts[-1].get("ended") or attempts[-1]["started"]) if attempts else None
    return Row(run, name, str(about["recipe"]), label, tuple(of), state, share, text, started, changed, len(attempts))


def _words(run: RunDir, state: str, attempts: Sequence[dict[str, Any]], states: States) -> tuple[float | None, str]:
    submitted = state in ("queued", "blocked", "lost") and (run.path / "submission.json").exists()
    if submitted and (remark := states.remark(run)):
        return None, remark
    if state == "done":
        return None, summary(run)
    if state in ("running", "interrupted", "lost") and attempts:
        glimpse = Watch(run).look()
        return glimpse.share or None, glimpse.text
    return None, str(attempts[-1].get("why", "")) if attempts and state in ("failed", "stopped") else ""


# --------------------------------------------------------------------------------------------------------- for people


def is_narrow(width: int) -> bool:
    """Return whether a screen of `width` characters has each run's label and text on a line of their own."""
    return width < NARROW


def render(found: Sequence[Row], width: int = 120) -> Table:
    """Return the rows as a table for a screen of `width` characters. Names of runs are never cut."""
    from rich.table import Table
    from rich.text import Text

    narrow = is_narrow(width)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("state", no_wrap=True)
    longest = max((len(row.name) for row in found), default=4)
    table.add_column("run", min_width=longest, ratio=1 if narrow else None)
    for title, ratio in () if narrow else (("label", 3), ("", 4)):
        table.add_column(title, ratio=ratio)  # not no_wrap, or the others would be cut as well: their cells are
    table.add_column("since", no_wrap=True, min_width=8)
    for row in found:
        state = f"[{STYLES.get(row.state, 'dim')}]{row.state}[/]"
        share = f"{row.share:4.0%}  " if row.share is not None else ""
        name, label, text = (_cut(text) for text in (row.name, row.label, share + row.text))
        below = _cut("  ".join(part for part in (share.strip(), row.text, row.label) if part))
        cells = [Text("\n").join([name, Text("  ") + below] if below else [name])] if narrow else [name, label, text]
        table.add_row(state, *cells, ago(row.changed))
    return table


def _cut(text: str) -> Any:
    """Return a text that is cut, not wrapped, where its column is too narrow."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


def plain(found: Sequence[Row]) -> str:
    """Return the rows as tab-separated text for a pipe: state, run, label, share, text."""
    lines = (
        "\t".join((r.state, r.name, r.label, f"{r.share:.0%}" if r.share is not None else "", r.text)) for r in found
    )
    return "\n".join(lines)


def counts(found: Sequence[Row]) -> str:
    """Return the number of runs in each state: `3 running, 10 done`."""
    number = Counter(row.state for row in found)
    return ", ".join(f"{number[state]} {state}" for state in ORDER if number[state]) or "no runs"


def ago(moment: float | None) -> str:
    """Return how long ago `moment` was, in one unit."""
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def watch(root: Path, study: str | None, state: str | None, until: Callable[[], bool] = lambda: False) -> None:
    """Show the rows until Ctrl-C or `until`: on a terminal as many as fit, elsewhere only changes."""
    with _showing() as show:
        asked = -math.inf
        while True:
            if time.monotonic() - asked > PATIENCE:
                hand_in_what_waits(root)
                asked = time.monotonic()
            show(rows(root, study, state))
            if until():
                return
            time.sleep(REFRESH)


@contextmanager
def _showing() -> Iterator[Callable[[Sequence[Row]], None]]:
    if not sys.stdout.isatty():
        yield _Changes()
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as live:

        def show(found: Sequence[Row]) -> None:
            width, height = live.console.size
            room = max(3, (height - 4) // (2 if is_narrow(width) else 1))
            rest = f"  ({len(found) - room} more; select with --study and --state)" if len(found) > room else ""
            live.update(Group(render(found[:room], width), Text(f"\n{counts(found)}{rest}", style="dim")), refresh=True)

        yield show


class _Changes:
    """For a pipe or a file: print a line for each run whose state changed, and the number of runs in each state."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def __call__(self, found: Sequence[Row]) -> None:
        changed = [row for row in found if self._before.get(row.name) != row.state]
        if changed:
            self._before |= {row.name: row.state for row in changed}
            print(plain(changed), counts(found), sep="\n", flush=True)


# --------------------------------------------------------------------------------------------------------------- logs


def log_file(run: RunDir, rank: int | None) -> Path:
    """Return the log file of a run; with `rank`, the output of that process of its cluster job.

    Raises:
        ValueError: if it does not exist, listing the ranks with an output.
    """
    if rank is None:
        if run.log.exists():
            return run.log
        raise ValueError(f"{run.path} has no log yet (state: {States(run.path.parents[1]).of(run)})")
    found: dict[int, Path] = {}
    if (run.path / "submission.json").exists():
        from mimbench.jobs.slurm import submission

        found = submission.outputs(run)
    if rank not in found:
        ranks = ", ".join(map(str, sorted(found))) or "none: the run has not run on a cluster"
        raise ValueError(f"{run.path} has no output of rank {rank} (available: {ranks})")
    return found[rank]


def show_log(file: Path, run: RunDir, follow: bool, lines: int = 40) -> None:
    """Print the last lines of a log; with `follow` continue until the run ends."""
    from mimbench.jobs.runs.watch import last_lines

    offset, goes_on = file.stat().st_size, follow
    print("\n".join(last_lines(file, lines, offset)), flush=True)
    while goes_on:
        goes_on = States(run.path.parents[1]).of(run) in (
            "running",
            "queued",
        )  # before reading, so that the last lines are not missed
        if goes_on:
            time.sleep(REFRESH)
        with file.open("rb") as handle:
            handle.seek(offset)
            new = handle.read()
        offset += len(new)
        print(new.decode("utf-8", "replace"), end="", flush=True)
