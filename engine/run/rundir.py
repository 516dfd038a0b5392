"""A run directory: one directory for one resolved config, with all files of the run.

    config.txt  run.json  attempts/1.json ...  log.txt  metrics.jsonl  tensorboard/
    checkpoints/  encoder.safetensors  result.json  plots/

`run.json` describes the run and never changes; `attempts/N.json` records when and where attempt N started and how
it ended; `result.json` appears when the run is done. The state is stored only in these files: a process starts an
attempt by creating the next attempt's file, which only one process can do. An attempt on another machine counts as
running while its heartbeat (the file's modification time) is fresh.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mimbench.engine.run.atomic import claim_json, write_json, write_text
from mimbench.engine.run.rungs import may_go_on

HEARTBEAT = 30.0  # seconds between two heartbeats of a run
SILENCE = 300.0  # seconds without a heartbeat after which a run on another machine counts as lost
ABOUT = ("recipe", "stage", "identity")  # required keys of run.json
ATTEMPT = ("state", "started", "host", "pid", "process_started")  # required keys of each attempt's file

State = Literal["new", "running", "done", "failed", "interrupted", "lost", "stopped"]


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
        """The run's log."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: `step`, `epoch` and the metrics at that step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Training states; a restart resumes from the newest valid one."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """The encoder that a pretraining writes."""
        return self.path / "encoder.safetensors"

    def encoder_at(self, epoch: int) -> Path:
        """Return the file of the encoder after `epoch` epochs, with `keep_encoder_every`."""
        return self.path / "encoders" / f"epoch-{epoch:04d}.safetensors"

    @property
    def classifier(self) -> Path:
        """The last weights of a fine-tuning, including the head."""
        return self.path / "classifier.safetensors"

    @property
    def best_classifier(self) -> Path:
        """The weights of the evaluation with the highest top-1."""
        return self.path / "classifier-best.safetensors"

    @property
    def predictions(self) -> Path:
        """The predictions for each validation image, with `save_predictions`."""
        return self.path / "predictions.safetensors"

    @property
    def detector(self) -> Path:
        """The whole detector of a detection run; detectron2 can read it too."""
        return self.path / "detector.pth"

    @property
    def result(self) -> Path:
        """Final metrics and the facts they depend on; exists only when the run is done."""
        return self.path / "result.json"

    @property
    def plots(self) -> Path:
        """Pictures for people and for the report."""
        return self.path / "plots"

    @classmethod
    def create(cls, path: Path, config_text: str, about: dict[str, Any]) -> RunDir:
        """Create the run directory at `path` and return it; an existing one is returned unchanged.

        `about` must contain `recipe`, `stage` and `identity`.
        """
        run = cls(path)
        if not run.about.exists():
            try:
                write_text(run.config, config_text)
                write_json(run.about, about)  # last: a directory with run.json is complete
            except OSError:
                run.config.unlink(missing_ok=True)
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
                raise
        return run

    def read_about(self) -> dict[str, Any]:
        """Return `run.json` as a dictionary.

        Raises:
            ValueError: if this is not a run directory.
        """
        return _read(self.about, "is not a run directory: run.json is missing or unreadable", self.path, ABOUT)

    def read_result(self) -> dict[str, Any] | None:
        """Return `result.json`; None while the run is not done.

        Raises:
            ValueError: if it is damaged.
        """
        if not self.result.exists():
            return None
        complaint = "has a damaged result.json: remove it and repeat the run"
        result = _read(self.result, complaint, self.path, ("metrics",))
        metrics = result["metrics"]
        if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
            raise ValueError(f"{self.path} {complaint} (its metrics are not numbers)")
        return result

    def attempts(self) -> list[dict[str, Any]]:
        """Return the record of every attempt of this run, oldest first."""
        return [self._read_attempt(number) for number in self._numbers()]

    def begin_attempt(self, **facts: Any) -> int:
        """Record a new attempt, with further `facts` about it, and return its number (1, 2, ...).

        Raises:
            ValueError: if the run is done or running, or another process starts it at the same moment.
        """
        number = max(self._numbers(), default=0) + 1  # before the state is read: later starts claim the same number
        state = self.state()
        if state == "done":
            raise ValueError(f"{self.path} is already done")
        if state == "running":
            raise ValueError(self._is_running())
        pid = os.getpid()
        process = {"host": socket.gethostname(), "pid": pid, "process_started": process_started(pid)}
        try:
            claim_json(self._attempt(number), {"state": "running", "started": time.time(), **process, **facts})
        except FileExistsError:
            raise ValueError(self._is_running()) from None
        return number

    def beat(self, number: int) -> None:
        """Renew the heartbeat of attempt `number`; call this every `HEARTBEAT` seconds."""
        os.utime(self._attempt(number))

    def is_superseded(self, number: int) -> bool:
        """Return whether a later attempt than `number` has started: SLURM believed the node of this one to be lost."""
        return max(self._numbers(), default=number) > number

    def end_attempt(self, number: int, state: State, why: str = "") -> None:
        """Record how attempt `number` ended."""
        begun = self._read_attempt(number)
        write_json(self._attempt(number), {**begun, "state": state, "ended": time.time(), "why": why})

    def amend_attempt(self, number: int, facts: dict[str, Any]) -> None:
        """Record further facts about attempt `number`."""
        begun = self._read_attempt(number)
        write_json(self._attempt(number), {**begun, **facts})

    def state(self) -> State:
        """Return the state: done, how the last attempt ended, or lost if its process or its result is gone.

        A run that stopped early at a rung of its sweep and was promoted since is interrupted: it can go on.
        """
        if self.result.exists():
            return "done"
        numbers = self._numbers()
        if not numbers:
            return "new"
        file = self._attempt(numbers[-1])
        last = self._read_attempt(numbers[-1])
        state: State = last["state"]
        if state == "stopped" and may_go_on(self.path):
            return "interrupted"
        gone = state == "done" or (state == "running" and not _lives(last, file))  # done: its result was removed later
        return "lost" if gone else state

    def _attempt(self, number: int) -> Path:
        return self.path / "attempts" / f"{number}.json"

    def _read_attempt(self, number: int) -> dict[str, Any]:
        file = self._attempt(number)
        return _read(file, f"has a damaged attempts/{file.name}: remove it", self.path, ATTEMPT)

    def _numbers(self) -> list[int]:
        files = (self.path / "attempts").glob("*.json")
        return sorted(int(file.stem) for file in files if file.stem.isdigit())

    def _is_running(self) -> str:
        last = self.attempts()[-1]
        return f"{self.path} is already running as process {last['pid']} on {last['host']}: stop that first, or wait"


def _lives(attempt: dict[str, Any], file: Path) -> bool:
    """Return whether the process of `attempt` still runs, and is not another process with the same number."""
    if attempt["host"] != socket.gethostname():
        return time.time() - file.stat().st_mtime < SILENCE
    started = process_started(attempt["pid"])
    return started is not None and abs(started - attempt["process_started"]) < 0.05


def process_started(pid: int) -> float | None:
    """Return when process `pid` started, in seconds since boot (the clock may be set); None if it has ended."""
    import psutil  # needed only for runs recorded as running

    try:
        process = psutil.Process(pid)
        over = process.status() == psutil.STATUS_ZOMBIE
        return None if over else process.create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None


def _read(file: Path, complaint: str, run: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run} {complaint} ({error})") from error
    lacking = [key for key in keys if not isinstance(value, dict) or key not in value]
    if lacking:
        raise ValueError(f"{run} {complaint} (it lacks {lacking[0]!r})")
    return dict(value)
