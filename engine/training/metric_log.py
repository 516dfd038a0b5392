"""The metrics of a training: means of the model's scalars, and the files and services they are written to.

`Means` keeps scalars on the device and reads them all at once when asked. Sinks write a line of numbers for a step:
`metrics.jsonl`, TensorBoard and, with `compute.wandb=true`, Weights & Biases.
"""

from __future__ import annotations

import importlib
import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.rundir import RunDir

Line = dict[str, float | None]


class NonFiniteLoss(ValueError):  # noqa: N818
    """The loss, or a weight, became NaN or infinite."""


class Means:
    """Means of scalars since the last line of metrics; only `read` reads from the device, never `add`."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, str, Tensor]] = []
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, step: int, scalars: Iterable[dict[str, Tensor]]) -> None:
        """Add the scalars of the micro-batches of optimiser step `step` (1-based)."""
        for named in scalars:
            self._pending += [(step, name, value) for name, value in named.items()]

    def read(self) -> None:
        """Fetch all scalars from the device at once.

        Raises:
            NonFiniteLoss: naming the first step whose loss is NaN or infinite.
        """
        if not self._pending:
            return
        values = torch.stack([value.reshape(()).float() for _, _, value in self._pending])
        if dist.is_initialized():
            dist.all_reduce(values)
            values /= dist.get_world_size()
        for (step, name, _), value in zip(self._pending, values.tolist(), strict=True):
            if name == "loss" and not math.isfinite(value):
                raise NonFiniteLoss(f"the loss became {value} at iteration {step}")
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
        self._pending.clear()

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and reset them."""
        self.read()
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts that `take` has not returned yet."""
        self.read()
        return {name: list(pair) for name, pair in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


class Sink(Protocol):
    """The interface of everything that stores the numbers of a step."""

    def write(self, step: int, line: Line) -> None:
        """Store `line`, measured after `step` optimiser steps."""

    def picture(self, step: int, name: str, png: Path) -> None:
        """Store the picture in the file `png`, drawn after `step` optimiser steps."""

    def flush(self) -> None:
        """Write out all buffers, so that a kill loses nothing."""

    def close(self) -> None:
        """Close the sink; written data stays."""


class JsonLines:
    """`metrics.jsonl`: one JSON object per line, flushed after each line.

    On a restart, lines of steps after the checkpoint are removed, because they will be written again. The evaluation at
    the checkpoint's own step (lines without "lr") is removed too, because it will be repeated.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        if path.exists():
            _cut(path, resumed_at)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, step: int, line: Line) -> None:
        """Append a line.

        Raises:
            OSError: naming the file.
        """
        try:
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def picture(self, step: int, name: str, png: Path) -> None:
        """Do nothing: this file holds only numbers."""

    def flush(self) -> None:
        """Do nothing: `write` flushes each line."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut(path: Path, resumed_at: int) -> None:
    text = path.read_text(encoding="utf-8")
    kept = "".join(f"{line}\n" for line in text.splitlines() if _stays(line, resumed_at))
    if kept != text:
        write_text(path, kept)


def _stays(line: str, resumed_at: int) -> bool:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:  # a kill interrupted the write
        return False
    return bool(values["step"] < resumed_at or (values["step"] == resumed_at and "lr" in values))


class TensorBoard:
    """Event files in `tensorboard/`; events that an interrupted attempt wrote after the checkpoint are purged."""

    def __init__(self, directory: Path, resumed_at: int) -> None:
        self._directory, self._resumed_at = directory, resumed_at
        self._writer: Any = None  # a SummaryWriter, once there is a line

    def write(self, step: int, line: Line) -> None:
        """Add the numbers.

        Raises:
            OSError: naming the directory.
        """
        self._add(step, lambda: _summary(line))

    def picture(self, step: int, name: str, png: Path) -> None:
        """Add the picture.

        Raises:
            OSError: naming the directory.
        """
        self._add(step, lambda: _image(name, png.read_bytes()))

    def _add(self, step: int, summary: Callable[[], Any]) -> None:
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # 0.3 s, after the first steps are done

                self._writer = SummaryWriter(str(self._directory), purge_step=self._resumed_at + 1)
            self._writer.file_writer.add_summary(summary(), step)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._directory)) from error

    def flush(self) -> None:
        """Write out the buffer.

        Raises:
            OSError: naming the directory.
        """
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._directory)) from error

    def close(self) -> None:
        """Write out the buffer and close the files."""
        if self._writer is not None:
            self._writer.close()


def _summary(line: Line) -> Any:
    """Return all numbers as one event, which takes a fifth of the time of one event per number."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in line.items() if value is not None]
    return Summary(value=values)


def _image(name: str, png: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
    return Summary(value=[Summary.Value(tag=name, image=image)])


class WandB:
    """Weights & Biases, under the run's identity: a restarted run continues the same W&B run.

    Raises:
        ValueError: if the package is not installed.
    """

    def __init__(self, run: RunDir) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError("compute.wandb=true needs the package wandb: pip install wandb") from error
        about = run.read_about()
        self._wandb = wandb
        self._run = wandb.init(
            project="mimbench", id=about["identity"], name=about["recipe"], dir=str(run.path), resume="allow"
        )

    def write(self, step: int, line: Line) -> None:
        """Log the numbers."""
        self._run.log(line, step=step)

    def picture(self, step: int, name: str, png: Path) -> None:
        """Log the picture."""
        self._run.log({name: self._wandb.Image(str(png))}, step=step)

    def flush(self) -> None:
        """Do nothing: wandb uploads by itself."""

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


def sinks(run: RunDir, resumed_at: int, wandb: bool) -> list[Sink]:
    """Return the sinks of a run; W&B comes first because its package may be missing."""
    extra: list[Sink] = [WandB(run)] if wandb else []
    return [JsonLines(run.metrics, resumed_at), TensorBoard(run.path / "tensorboard", resumed_at), *extra]
