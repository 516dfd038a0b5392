"""A run of a study in the local scheduler: the runs it waits for, its process, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.local.launcher import Job
from mimbench.jobs.studies.study import Run

Fate = Literal["waiting", "running", "elsewhere", "done", "failed", "left out", "stopped", "stopped early", "held"]


@dataclass
class Task:
    """A run of the study and its progress."""

    run: Run
    name: str  # shown to people
    needs: Sequence[Task] = ()
    fate: Fate = "waiting"
    why: str = ""
    directory: RunDir | None = None
    job: Job | None = None
    slot: int | None = None
    started: float = 0.0
    seconds: float = 0.0
    done_before: bool = False
    at: str = ""  # progress at the last start, and the number of starts from there
    starts: int = 0

    @property
    def over(self) -> bool:
        """Return whether the task has ended."""
        return self.fate in ("done", "failed", "left out", "stopped", "stopped early", "held")

    @property
    def is_well(self) -> bool:
        """Return whether the task ended as its study wants: done, stopped early, or held by its budget."""
        return self.fate in ("done", "stopped early", "held")
