"""Our loop and hooks, in place of mmengine's own. Import this only when a run starts: mmengine takes seconds.

mmengine's Runner calls the hooks in the order of their priority. Order within a step: take in what the model reported,
write a line of metrics, save a checkpoint, evaluate. An evaluation that a kill cut short is done again on restart.
"""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mimbench.engine.training.session import Session
from mimbench.engine.training.state import prune, save_state, state_path, steps_saved


class Handle(nn.Module):
    """What Runner takes for the model. Runner moves, wraps, re-initialises and counts whatever model it is given, and
    all that is settled already; so it is given something that can only step.
    """

    session: Session

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def train_step(self, data: Any, optim_wrapper: Any) -> list[dict[str, Tensor]]:
        """One optimiser step on the next micro-batches of the iterator `data`."""
        return self.session.stepper.step(self.session.step, data)


class NoVisualizer(Visualizer):
    """Runner insists on a visualizer, and making mmengine's own opens figures in matplotlib."""

    def __init__(self, name: str) -> None:
        ManagerMixin.__init__(self, name)


class StepLoop(BaseLoop):
    """Optimiser steps from where the session is to its end, over batches that can be entered anywhere."""

    def __init__(self, session: Session) -> None:
        super().__init__(None, session.training.batches)
        self.session = session

    def attach(self, runner: Runner) -> None:
        """Runner and loop want each other when built; the loop gives way."""
        self._runner = runner

    @property
    def max_epochs(self) -> int:
        """Runner wants to know; nothing of ours does."""
        return 1

    @property
    def max_iters(self) -> int:
        """Optimiser steps in all."""
        return self.session.training.steps

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return int(self.session.epoch)

    @property
    def iter(self) -> int:
        """Optimiser steps done."""
        return self.session.step

    def run(self) -> None:
        """Train to the last step."""
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
    """A hook that works on the session; `every` is how often it is due, in steps (always at the end)."""

    def __init__(self, session: Session, every: int) -> None:
        self.session, self.every = session, every

    def due(self) -> bool:
        """Whether it is this hook's turn after the step just done."""
        return self.session.step % self.every == 0 or self.session.step == self.session.training.steps


class Record(SessionHook):
    """Keeps what the model reports, on the device, and writes a line of metrics when due."""

    priority = 10

    def after_train_iter(self, runner: Runner, batch_idx: int, outputs: Any = None, **_: Any) -> None:
        """Called by Runner."""
        session = self.session
        session.means.add(session.step, outputs)
        session.display.advance(session.step)
        if self.due():
            session.write_line()


class Save(SessionHook):
    """Saves a checkpoint when due, after making sure that it is a good one."""

    priority = 20

    def before_train(self, runner: Runner) -> None:
        """Called by Runner. An attempt that was killed between saving and removing has left one checkpoint too many."""
        directory = self.session.run.checkpoints
        if self.session.rank == 0 and steps_saved(directory)[:1] == [self.session.step]:
            prune(directory, self.session.training.compute.keep)

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Called by Runner."""
        if self.due():
            with self.session.clock.paused():
                self._save()

    def _save(self) -> None:
        session = self.session
        session.must_be_finite()
        session.training.batches.skipped.gather()
        session.flush()
        if session.rank == 0:
            directory = session.run.checkpoints
            save_state(state_path(directory, session.step), session.state_dict())
            prune(directory, session.training.compute.keep)


class Evaluate(SessionHook):
    """Evaluates when due, and at the start of an attempt that resumed where an evaluation was due."""

    priority = 30

    def before_train(self, runner: Runner) -> None:
        """Called by Runner."""
        if self.session.step and self.due():
            self.session.evaluate()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Called by Runner."""
        if self.due():
            with self.session.clock.paused():
                self.session.evaluate()
