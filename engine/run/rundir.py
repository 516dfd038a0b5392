"""A run directory: one directory made from one resolved config, holding everything that is known of the run.

    config.txt  run.json  attempts/1.json ...  log.txt  metrics.jsonl  tensorboard/
    checkpoints/  encoder.safetensors  result.json  plots/

`run.json` says what the run is and never changes; `attempts/N.json` says when it was started, on what, and how
that ended; `result.json` appears when it is done. State lives in these files alone: a start is a claim on the next
attempt's file, which one process wins, and a start on another machine is believed to be running for as long as its
heartbeat (the file's time) is fresh.
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

HEARTBEAT = 30.0  # seconds between two signs of life of a run
SILENCE = 300.0  # seconds without one after which a run on another machine is taken for lost
ABOUT = ("recipe", "stage", "identity")  # what run.json holds at least
ATTEMPT = ("state", "started", "host", "pid", "process_started")  # and the file of each start

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

    def encoder_at(self, epoch: int) -> Path:
        """What pretraining left of itself after `epoch` epochs, with `keep_encoder_every`."""
        return self.path / "encoders" / f"epoch-{epoch:04d}.safetensors"

    @property
    def classifier(self) -> Path:
        """What fine-tuning leaves: the last weights, head and all."""
        return self.path / "classifier.safetensors"

    @property
    def best_classifier(self) -> Path:
        """The weights of the evaluation with the highest top-1."""
        return self.path / "classifier-best.safetensors"

    @property
    def predictions(self) -> Path:
        """What was predicted for each validation image, with `save_predictions`."""
        return self.path / "predictions.safetensors"

    @property
    def detector(self) -> Path:
        """What detection leaves: the whole detector, as detectron2 reads it too."""
        return self.path / "detector.pth"

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
        """`run.json` as a dictionary.

        Raises:
            ValueError: if this is not a run directory.
        """
        return _read(self.about, "is not a run directory: it has no readable run.json", self.path, ABOUT)

    def read_result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the run is not done.

        Raises:
            ValueError: if it is damaged.
        """
        if not self.result.exists():
            return None
        complaint = "has a damaged result.json: remove it and run it again"
        result = _read(self.result, complaint, self.path, ("metrics",))
        metrics = result["metrics"]
        if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
            raise ValueError(f"{self.path} {complaint} (its metrics are no numbers)")
        return result

    def attempts(self) -> list[dict[str, Any]]:
        """What is known of every start of this run, oldest first."""
        return [self._read_attempt(number) for number in self._numbers()]

    def begin_attempt(self, **facts: Any) -> int:
        """Record a new start, with more `facts` about it, and return its number (1, 2, ...).

        Raises:
            ValueError: if the run is done or running, or another process started it in this very moment.
        """
        number = max(self._numbers(), default=0) + 1  # before the look: who starts it after that wants the same number
        state = self.state()
        if state == "done":
            raise ValueError(f"{self.path} is done; it is not repeated")
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
        """Show that start `number` is alive; to be called every `HEARTBEAT` seconds."""
        os.utime(self._attempt(number))

    def end_attempt(self, number: int, state: State, why: str = "") -> None:
        """Record how start `number` ended."""
        begun = self._read_attempt(number)
        write_json(self._attempt(number), {**begun, "state": state, "ended": time.time(), "why": why})

    def amend_attempt(self, number: int, facts: dict[str, Any]) -> None:
        """Record more about start `number`."""
        begun = self._read_attempt(number)
        write_json(self._attempt(number), {**begun, **facts})

    def state(self) -> State:
        """What the files say: done, how the last attempt ended, or lost when its process or its result is gone."""
        if self.result.exists():
            return "done"
        numbers = self._numbers()
        if not numbers:
            return "new"
        file = self._attempt(numbers[-1])
        last = self._read_attempt(numbers[-1])
        state: State = last["state"]
        gone = state == "done" or (state == "running" and not _lives(last, file))  # done: its result was removed since
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
        return f"{self.path} is being run by process {last['pid']} on {last['host']}: stop that first, or wait for it"


def _lives(attempt: dict[str, Any], file: Path) -> bool:
    """Whether the process that began `attempt` is still there: the same one, not another with its number."""
    if attempt["host"] != socket.gethostname():
        return time.time() - file.stat().st_mtime < SILENCE
    started = process_started(attempt["pid"])
    return started is not None and abs(started - attempt["process_started"]) < 0.05


def process_started(pid: int) -> float | None:
    """When process `pid` began, in seconds after the machine did, for its clock may be set; None if it is over."""
    import psutil  # only runs that say they are running need it

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
        raise ValueError(f"{run} {complaint} (it holds no {lacking[0]!r})")
    return dict(value)
