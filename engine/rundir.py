"""A run directory: one directory made from one resolved config, holding everything that is known of the run.

    config.txt  run.json  attempts/1.json ...  log.txt  metrics.jsonl  tensorboard/
    checkpoints/  encoder.safetensors  result.json  plots/

`run.json` says what the run is and never changes; `attempts/N.json` says when it was started, on what, and how
that ended; `result.json` appears when it is done. State lives in these files alone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.atomic import write_json, write_text

State = Literal["new", "running", "done", "failed", "interrupted", "lost"]


@dataclass(frozen=True)
class RunDir:
    """The paths and the state of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config as text."""
        return self.path / "config.txt"

    @property
    def about(self) -> Path:
        """`run.json`: recipe, stage, identity, input checkpoint."""
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: `step`, `epoch`, and whatever was measured then."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Training states; the newest valid one is resumed from."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """What pretraining hands on."""
        return self.path / "encoder.safetensors"

    @property
    def result(self) -> Path:
        """Final metrics and the facts they depend on; there only when the run is done."""
        return self.path / "result.json"

    @property
    def plots(self) -> Path:
        """Pictures for people and for the report."""
        return self.path / "plots"

    @classmethod
    def create(cls, path: Path, config_text: str, about: dict[str, Any]) -> RunDir:
        """The run directory at `path`; one that is there already is returned as it is.

        `about` holds at least `recipe`, `stage` and `identity`.
        """
        run = cls(path)
        if not run.about.exists():
            write_text(run.config, config_text)
            write_json(run.about, about)  # last: a directory with run.json is complete
        return run

    def read_about(self) -> dict[str, Any]:
        """`run.json` as a dictionary.

        Raises:
            ValueError: if this is not a run directory.
        """
        return _read(self.about, "is not a run directory: it has no readable run.json", self.path)

    def read_result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the run is not done."""
        return _read(self.result, "has a damaged result.json", self.path) if self.result.exists() else None

    def attempts(self) -> list[dict[str, Any]]:
        """What is known of every start of this run, oldest first."""
        files = sorted((self.path / "attempts").glob("*.json"), key=lambda file: int(file.stem))
        return [_read(file, "has a damaged attempt", self.path) for file in files]

    def begin_attempt(self) -> int:
        """Record a new start and return its number (1, 2, ...)."""
        number = len(self.attempts()) + 1
        start = {"state": "running", "started": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        write_json(self.path / "attempts" / f"{number}.json", start)
        return number

    def end_attempt(self, number: int, state: State, why: str = "") -> None:
        """Record how start `number` ended."""
        file = self.path / "attempts" / f"{number}.json"
        begun = _read(file, "has a damaged attempt", self.path)
        write_json(file, {**begun, "state": state, "ended": time.time(), "why": why})

    def state(self) -> State:
        """What the files say: done, how the last attempt ended, or lost when its process is gone."""
        if self.result.exists():
            return "done"
        attempts = self.attempts()
        if not attempts:
            return "new"
        last = attempts[-1]
        if last["state"] == "running" and last["host"] == socket.gethostname() and not _alive(last["pid"]):
            return "lost"
        state: State = last["state"]
        return state


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(file: Path, complaint: str, run: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run} {complaint} ({error})") from error
    return value
