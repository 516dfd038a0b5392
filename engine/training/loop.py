"""The training loop and hooks that replace mmengine's. Import this only when a run starts: mmengine takes seconds.

mmengine's Runner calls the hooks in the order of their priority. Order within a step: collect the model's scalars,
write a line of metrics, save a checkpoint, evaluate, stop early. An evaluation interrupted by a kill is repeated on
restart.
"""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mimbench.engine.run.process import announced
from mimbench.engine.run.rungs import StoppedEarly
from mimbench.engine.training.session import Session
from mimbench.engine.training.state import prune, state_path, steps_saved


class Handle(nn.Module):
    """The model that Runner sees. Runner moves, wraps, re-initialises and counts its model, which is already done
    here; so it gets an object that can only step.
    """

    session: Session

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def train_step(self, data: Any, optim_wrapper: Any) -> list[dict[str, Tensor]]:
        """Do one optimiser step on the next micro-batches of the iterator `data`."""
        return self.session.stepper.step(self.session.step, data)


class NoVisualizer(Visualizer):
    """An empty visualizer: Runner requires one, and mmengine's own opens matplotlib figures."""

    def __init__(self, name: str) -> None:
        ManagerMixin.__init__(self, name)


class StepLoop(BaseLoop):
    """Optimiser steps from the session's current step to the last, over batches that can start anywhere."""

    def __init__(self, session: Session) -> None:
        super().__init__(None, session.training.batches)
        self.session = session

    def attach(self, runner: Runner) -> None:
        """Set the Runner: Runner and loop need each other when built, so the loop gets it afterwards."""
        self._runner = runner

    @property
    def max_epochs(self) -> int:
        """Return 1; only Runner asks for it."""
        return 1

    @property
    def max_iters(self) -> int:
        """The total number of optimiser steps."""
        return self.session.training.steps

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return int(self.session.epoch)

    @property
    def iter(self) -> int:
        """The number of completed optimiser steps."""
        return self.session.step

    def run(self) -> None:
        """Train until the last step."""
        session, runner = self.session, self.runner
        session.training.model.train()
        runner.call_hook("before_train")
        batches = session.training.batches.starting_at(session.step * session.training.compute.accumulate)
        session.clock.start()
        while session.step < session.training.steps:
            outputs = runner.model.train_step(batches, optim_wrapper=runner.optim_wrapper)
            session.step += 1
            runner.call_hook("after_train_iter", batch_idx=session.step - 1, outputs=outputs)
        session.clock.stop()
        runner.call_hook("after_train")


class SessionHook(Hook):
    """A hook that works on the session every `every` steps, and after the last step."""

    def __init__(self, session: Session, every: int) -> None:
        self.session, self.every = session, every

    def due(self) -> bool:
        """Return whether this hook runs after the current step."""
        return self.session.step % self.every == 0 or self.session.step == self.session.training.steps


class Record(SessionHook):
    """Collects the model's scalars on the device and writes a line of metrics when due."""

    priority = 10

    def after_train_iter(self, runner: Runner, batch_idx: int, outputs: Any = None, **_: Any) -> None:
        """Called by Runner."""
        session = self.session
        session.means.add(session.step, outputs)
        session.display.advance(session.step)
        if self.due():
            session.write_line()


class Save(SessionHook):
    """Saves a checkpoint when due, after checking that loss and weights are finite.

    A thread writes it (`engine/training/saving.py`). The run goes on after its last step, and after a rung, only when
    the checkpoint is on disk.
    """

    priority = 20

    def before_train(self, runner: Runner) -> None:
        """Called by Runner. Remove the extra checkpoint of an attempt that was killed between saving and pruning."""
        self._saved = time.monotonic()
        directory = self.session.run.checkpoints
        if self.session.rank == 0 and steps_saved(directory)[:1] == [self.session.step]:
            prune(directory, self.session.training.compute.keep)

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Called by Runner."""
        self.session.saver.check()
        if self.due():
            with self.session.clock.paused():
                self._save()

    def due(self) -> bool:
        """Return whether a checkpoint is due: a run that stops at a rung of its sweep resumes there."""
        return super().due() or self.session.rung is not None or self._minutes_passed()

    def _minutes_passed(self) -> bool:
        """Return whether the last checkpoint is `save_minutes` old by rank 0's clock, asked where a line is written."""
        compute = self.session.training.compute
        if compute.save_minutes is None or self.session.step % compute.log_every:
            return False
        return announced(time.monotonic() - self._saved >= 60 * compute.save_minutes)

    def _save(self) -> None:
        session = self.session
        session.must_be_finite()
        session.training.batches.skipped.gather()
        session.flush()
        if session.rank == 0 or session.stepper.sharded:  # all processes gather what is in shards
            session.saver.save(state_path(session.run.checkpoints, session.step), session.state_dict())
            if session.step == session.training.steps or session.rung is not None:
                session.saver.wait()
        self._saved = time.monotonic()


class Evaluate(SessionHook):
    """Evaluates when due, and at the start of an attempt that resumed where an evaluation was due."""

    priority = 30

    def due(self) -> bool:
        """Return whether an evaluation is due: the runs of a sweep are compared at its rungs."""
        return super().due() or self.session.rung is not None

    def before_train(self, runner: Runner) -> None:
        """Called by Runner."""
        if self.session.step and self.due():
            self.session.evaluate()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Called by Runner."""
        if self.due():
            with self.session.clock.paused():
                self.session.evaluate()


class Stop(SessionHook):
    """Stops the run at a rung of its sweep if too many others are better (`engine/run/rungs.py`)."""

    priority = 40

    def before_train(self, runner: Runner) -> None:
        """Called by Runner. Decide again: an attempt may have been killed before it stopped."""
        self._decide()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Called by Runner."""
        self._decide()

    def _decide(self) -> None:
        if self.session.rung is not None:
            self.session.flush()
            stop_if_told(self.session)


def stop_if_told(session: Session) -> None:
    """Let rank 0 compare the run with the others at this rung, and stop all ranks if it must stop.

    Raises:
        StoppedEarly: if it must.
        ValueError: if the sweep's metric is not evaluated.
    """
    told: list[StoppedEarly | ValueError | None] = [None]
    if session.rank == 0:
        assert session.rungs is not None
        assert session.rung is not None
        try:
            session.rungs.arrive(session.run.path, session.rung, session.metrics)
        except (StoppedEarly, ValueError) as error:
            told = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    if told[0] is not None:
        raise told[0]
