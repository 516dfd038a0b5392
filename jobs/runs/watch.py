"""Read the progress of a running run and the last lines of its log from its files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench.engine.data.shared_images import measured_on
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.tasks import headlines

TAIL = 8192  # bytes read first from the end of a file


@dataclass(frozen=True)
class Glimpse:
    """The progress of a run."""

    share: float = 0.0  # of the steps, 0 to 1
    text: str = ""  # "loss 0.512  1,210 img/s"


class Watch:
    """Reads the progress of a run repeatedly; the length of the training is read once."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._length = _length(run)

    def look(self) -> Glimpse:
        """Return the current progress; empty for a run that records no steps."""
        line = last_step(self.run.metrics)
        if line is None or self._length is None:
            return Glimpse()
        key, total = self._length
        parts = [f"loss {line['loss']:.3g}"] if isinstance(line.get("loss"), float) else []
        if rate := line.get("images_per_second"):
            parts.append(f"{rate:,.0f} img/s")
        if (waiting := line.get("waiting") or 0.0) >= 0.01:
            parts.append(f"{waiting:.0%} waiting for data")
        return Glimpse(min(1.0, line[key] / total), "  ".join(parts))


def _length(run: RunDir) -> tuple[str, float] | None:
    """Return the unit in which metrics count progress (steps or epochs), and the total."""
    text = run.config.read_text(encoding="utf-8")  # parsing all of it takes 1 ms, and a list of runs has many
    found = dict(re.findall(r"^(steps|epochs) = (\d+)\b", text, re.MULTILINE))
    keys = (("step", "steps"), ("epoch", "epochs"))
    return next(((key, float(found[name])) for key, name in keys if name in found), None)


def last_step(metrics: Path) -> dict[str, Any] | None:
    """Return the last complete line of `metrics.jsonl` written by a training step."""
    for text in reversed(last_lines(metrics, 50)):
        try:
            line: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:  # being written
            continue
        if "lr" in line:
            return line
    return None


def last_lines(file: Path, count: int, end: int | None = None) -> list[str]:
    """Return at most `count` last lines of the first `end` bytes of a text file; none if it does not exist."""
    try:
        with file.open("rb") as handle:
            end, size = handle.seek(0, os.SEEK_END) if end is None else end, TAIL
            while True:
                handle.seek(max(0, end - size))
                lines = handle.read(min(size, end)).decode("utf-8", "replace").splitlines()
                if len(lines) > count or size >= end:  # one more than needed: the first may be half a line
                    return lines[-count:]
                size *= 4
    except FileNotFoundError:
        return []


def summary(run: RunDir) -> str:
    """Return the metrics of a finished run in short form."""
    return summary_of(run.read_result() or {})


def summary_of(result: Mapping[str, Any]) -> str:
    """Return the metrics of the content of `result.json` in short form."""
    metrics = result.get("metrics", {})
    numbers = [f"{name} {metrics[name]:.4g}" for name in headlines(str(result.get("stage", "")), metrics)]
    return "  ".join([*numbers, *([f"({told})"] if (told := measured_on(result)) else [])])
