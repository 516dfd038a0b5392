"""The state of a training in progress: its step, its metrics, and everything that a checkpoint stores."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mimbench.engine.data.waiting import LONG, NOTABLE, Loading, Waits, advice
from mimbench.engine.run.atomic import sweep
from mimbench.engine.run.cores import cores_of_process, loading_processes
from mimbench.engine.run.process import derived_seed, largest, peak_memory, rank_and_world, seed_all
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import rungs_of
from mimbench.engine.training.metric_log import Means, NonFiniteLoss, Sink, sinks
from mimbench.engine.training.progress import Display
from mimbench.engine.training.saving import Saver
from mimbench.engine.training.sharding import whole
from mimbench.engine.training.state import load_newest
from mimbench.engine.training.step import Stepper
from mimbench.engine.training.training import Training


class Clock:
    """The seconds spent on steps, without saving and evaluating, over all attempts."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self, at: float | None = None) -> None:
        """Start the clock at its current time, or at `at` seconds."""
        self._before = self.seconds if at is None else at
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock."""
        self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside the `with` block."""
        self.stop()
        yield
        self.start()


class Session:
    """What the loop and its hooks share. Construction resumes from the newest valid checkpoint of the run."""

    def __init__(self, run: RunDir, training: Training, device: torch.device) -> None:
        self.run, self.training, self.device = run, training, device
        self.rank, _ = rank_and_world()
        self.means, self.clock = Means(), Clock()
        self.waits = Waits()  # for data, of the process that waited longest; over all attempts
        self._waits_at_line, self._advised = Waits(), False
        self.step = 0  # optimiser steps done
        self.metrics: dict[str, float] = {}  # of the last evaluation
        self.rungs = rungs_of(run.path)
        self.saver = Saver(training.compute.keep, writes=self.rank == 0)
        if self.rank == 0:
            sweep(run.path)
        newest, state = load_newest(run.checkpoints) or (None, None)
        self.sinks: list[Sink] = (
            sinks(run, state["step"] if state else 0, training.compute.wandb) if self.rank == 0 else []
        )
        self.stepper = Stepper(training, device)
        if state:
            self._resume(state, newest)
        self._line_at = (self.step, self.clock.seconds)
        title = run.read_about()["recipe"]
        quiet = None if self.rank == 0 else Console(file=io.StringIO())
        self.display = Display(title, training.steps, self.step, quiet)
        if newest:
            self.display.say(f"resumes after step {self.step} of {training.steps}, from {newest}")

    def _resume(self, state: dict[str, Any], path: Path | None) -> None:
        try:
            self._load_training(state)
        except (RuntimeError, KeyError, ValueError) as error:
            why = str(error).partition("\n")[0]
            anew = f"remove {self.run.checkpoints} to start from the beginning"
            raise ValueError(f"{path} belongs to another model or optimiser ({why}): {anew}") from error
        self._load_extra(state)

    @property
    def epoch(self) -> float:
        """The epochs done, as a fraction."""
        return self.training.epoch(self.step)

    @property
    def rung(self) -> int | None:
        """The rung of the run's sweep that this step reaches; None if none, or after the last step."""
        if self.rungs is None or not 0 < self.step < self.training.steps:
            return None
        return self.rungs.at(self.training.epoch(self.step - 1), self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a restart needs."""
        return {
            "step": self.step,
            "seconds": self.clock.seconds,
            "waits": asdict(self.waits),
            "stepper": self.stepper.state_dict(),
            "means": self.means.state_dict(),
            "skipped": self.training.batches.skipped.state_dict(),
            "extra": {name: item.state_dict() for name, item in self.training.extra_state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._load_training(state)
        self._load_extra(state)

    def _load_training(self, state: dict[str, Any]) -> None:
        if lacking := self.training.extra_state.keys() - state["extra"].keys():
            raise KeyError(f"it lacks {', '.join(sorted(lacking))}")
        self.step = state["step"]
        self.clock.start(at=state["seconds"])
        self.clock.stop()
        unmeasured = {"starting": state["seconds"], "seconds": 0.0}  # earlier releases did not measure waits
        self.waits = Waits(**state.get("waits", unmeasured))
        self.stepper.load_state_dict(state["stepper"])
        self.means.load_state_dict(state["means"])
        self.training.batches.skipped.load_state_dict(state["skipped"])

    def _load_extra(self, state: dict[str, Any]) -> None:
        """Load the extra states; errors (such as weight maps of other images) come from the object that finds them."""
        for name, item in self.training.extra_state.items():
            item.load_state_dict(state["extra"][name])

    def write_line(self) -> None:
        """Write a line of metrics for the steps since the last line; this reads from the device."""
        means = self.means.take()
        step_before, seconds_before = self._line_at
        steps, seconds = self.step - step_before, self.clock.seconds - seconds_before
        self._line_at = (self.step, self.clock.seconds)
        rate = steps * self.training.batches.images_per_step / seconds
        memory, waiting = peak_memory(self.device), self._waited(seconds)
        self._write(
            {
                **means,
                "lr": self.training.rate(self.step - 1),
                "images_per_second": rate,
                "waiting": waiting,
                "seconds": self.clock.seconds,
                "memory": memory,
            }
        )
        left = (self.training.steps - self.step) * seconds / steps
        self.display.report(self.step, means["loss"], rate, left, memory, waiting)
        self._advise()

    def _waited(self, seconds: float) -> float:
        """Return the share of the last `seconds` of training spent waiting for data, and add it to `waits`."""
        now, before = self.training.batches.waiting.read(), self._waits_at_line
        self._waits_at_line = now
        new = Waits(*largest((now.starting - before.starting, now.seconds - before.seconds), self.device))
        self.waits = Waits(self.waits.starting + new.starting, self.waits.seconds + new.seconds)
        return new.share(seconds)

    def _advise(self) -> None:
        """Say once that data loading is the bottleneck, if it is."""
        loading, seconds = self.loading(), self.clock.seconds - self.waits.starting
        if self._advised or seconds < LONG or loading["waiting"] < NOTABLE:
            return
        self._advised = True
        fitted = loading_processes(loading["cores"], self.device.type == "cuda", len(self.training.batches.dataset))
        self.display.say(advice(loading["waiting"], loading["workers"], loading["cores"], fitted))

    def loading(self) -> Loading:
        """Return the loading processes, and how long the training waited for them, over all attempts."""
        return {
            "workers": self.training.batches.workers,
            "cores": cores_of_process(),
            "waiting": self.waits.share(self.clock.seconds),
            "waiting_seconds": self.waits.seconds,
            "starting_seconds": self.waits.starting,
        }

    def _write(self, line: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
        for sink in self.sinks:
            sink.write(self.step, {"epoch": self.epoch, **finite})

    def must_be_finite(self) -> None:
        """Check that no loss and no weight is NaN or infinite.

        Raises:
            NonFiniteLoss: if one is.
        """
        self.means.read()
        if not self.stepper.weights_are_finite():
            raise NonFiniteLoss(f"a weight became NaN or infinite by iteration {self.step}")

    def evaluate(self) -> None:
        """Evaluate the (averaged) weights and write the metrics; this does not affect the training."""
        if self.training.evaluate is None:
            return
        model = self.training.model
        seed_all(derived_seed(self.training.seed, -1, self.step))
        model.eval()
        with self.stepper.averaged(), whole(model), torch.no_grad():
            self.metrics = self.training.evaluate(model)
            if self.training.keep is not None and self.rank == 0:
                self.training.keep(model, self.step, self.metrics)
            if self.training.draw is not None and self.rank == 0:
                self._keep(self.training.draw())
        model.train()
        self._write(self.metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        self.display.say(f"step {self.step}: {shown}")

    def _keep(self, pictures: dict[str, Path]) -> None:
        for name, file in pictures.items():
            for sink in self.sinks:
                sink.picture(self.step, name, file)

    def flush(self) -> None:
        """Flush all sinks to disk."""
        for sink in self.sinks:
            sink.flush()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and close the files and the progress display.

        Raises:
            OSError: naming the file that could not be written.
        """
        try:
            self.display.close()
            for sink in self.sinks:
                sink.close()
        finally:
            self.saver.wait()
