"""A run of a study as the local scheduler sees it: what it waits for, where it runs, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.studies.study import Run

if TYPE_CHECKING:
    from submitit import Job

Fate = Literal["waiting", "running", "elsewhere", "done", "failed", "left out", "stopped"]


@dataclass
class Task:
    """A run of the study, and what has become of it."""

    run: Run
    name: str  # what people see
    needs: Sequence[Task] = ()
    fate: Fate = "waiting"
    why: str = ""
    directory: RunDir | None = None
    job: Job[int] | None = None
    slot: int | None = None
    started: float = 0.0
    seconds: float = 0.0
    done_before: bool = False
    at: str = ""  # how far it was when it was started, and how often it was started there
    starts: int = 0

    @property
    def over(self) -> bool:
        """Nothing more will come of it."""
        return self.fate in ("done", "failed", "left out", "stopped")
