"""The training loop of all tasks: `train(run, Training(...))`.

A stage builds ordinary objects and passes them in. The loop writes metrics, TensorBoard files and checkpoints to the
run directory, and resumes from the newest valid checkpoint there: a run that was killed at any moment and restarted
ends with the same weights, bit for bit on a CPU, as one that never stopped.

    device = setup_process(config.compute, config.seed)
    training = Training(model=..., optimizer=adamw(...), batches=Batches(...), steps=1000,
                        learning_rate=lambda step: ..., compute=config.compute, seed=config.seed)
    trained = train(run, training)

mmengine's Runner runs the loop. Its own handling of devices, data, precision, checkpoints and logs cannot keep these
promises (it cannot resume its own files on torch >= 2.6, refuses mixed precision on a CPU, and reads every loss from
the device at every step), so `to_runner` gives it our loop and hooks instead. Only that function and
engine/training/loop.py depend on mmengine.
"""

from __future__ import annotations

import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mimbench.engine.data.waiting import Loading
from mimbench.engine.run.process import peak_memory, setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.metric_log import NonFiniteLoss
from mimbench.engine.training.session import Session
from mimbench.engine.training.sharding import make_whole
from mimbench.engine.training.state import newest_valid
from mimbench.engine.training.training import Training

if TYPE_CHECKING:
    from mmengine.runner import Runner

__all__ = ["NonFiniteLoss", "Trained", "Training", "train"]


@dataclass
class Trained:
    """The result of a training."""

    model: nn.Module  # in eval mode, with averaged weights if an average was kept
    metrics: dict[str, float]  # of the last evaluation
    images_per_second: float  # over all steps of all attempts, without saving and evaluating
    seconds: float  # of steps, over all attempts
    peak_memory: int  # bytes, in this process
    loading: Loading  # how long the steps waited for data


def train(run: RunDir, training: Training) -> Trained:
    """Train until the last step, from the newest valid checkpoint in `run` if there is one.

    Raises:
        NonFiniteLoss: naming the iteration; the last good checkpoint is kept.
        OSError: naming the file that could not be written; earlier checkpoints are kept.
        StoppedEarly: at a rung of the run's sweep, if too many other runs are better.
        ValueError: if W&B is requested but not installed.
    """
    device = setup_process(training.compute, training.seed)
    session = Session(run, training, device)
    try:
        to_runner(session).train()
    except BaseException as error:
        with suppress(Exception):  # report the error that stopped the training, not this one
            session.close()
        if isinstance(error, NonFiniteLoss):
            good = newest_valid(run.checkpoints) or "none"
            advice = "lower the learning rate, warm up longer, or use compute.precision=fp32"
            raise NonFiniteLoss(f"{error}: {advice} (last good checkpoint: {good})") from None
        raise
    session.close()
    if session.stepper.ema is not None:
        session.stepper.ema.swap()
    make_whole(training.model)
    training.model.eval()
    images, seconds = training.steps * training.batches.images_per_step, session.clock.seconds
    return Trained(training.model, session.metrics, images / seconds, seconds, peak_memory(device), session.loading())


def load_libraries() -> None:
    """Import what `train` imports when it starts, so that processes forked afterwards need not."""
    import torch._dynamo  # every optimizer imports it at its first use
    import torch.utils.tensorboard  # noqa: F401

    import mimbench.engine.training.loop  # noqa: F401


def to_runner(session: Session) -> Runner:
    """Return mmengine's Runner around our loop and hooks, without its own logs, files and defaults."""
    from mmengine.optim import OptimWrapper  # mmengine takes seconds to import
    from mmengine.runner import Runner
    from torch import multiprocessing

    from mimbench.engine.training.loop import Evaluate, Handle, NoVisualizer, Record, Save, StepLoop, Stop

    training, compute = session.training, session.training.compute
    name = f"mimbench-{uuid.uuid4().hex}"  # Runner keeps named objects for the life of the process
    loop = StepLoop(session)
    with tempfile.TemporaryDirectory(prefix="mimbench-runner-") as directory:  # Runner always writes files
        runner = Runner(
            model=Handle(session),
            work_dir=directory,
            train_dataloader=training.batches,
            train_cfg=loop,
            optim_wrapper=OptimWrapper(training.optimizer),
            default_hooks=dict.fromkeys(DEFAULT_HOOKS),
            custom_hooks=[
                Record(session, compute.log_every),
                Save(session, compute.save_every),
                Evaluate(session, training.evaluate_every or training.steps),
                Stop(session, training.steps),
            ],
            env_cfg={"mp_cfg": {"mp_start_method": multiprocessing.get_start_method()}},  # else it forces fork
            randomness={"seed": training.seed},
            log_level="ERROR",
            visualizer=NoVisualizer(name),
            experiment_name=name,
        )
        _close_log_files(runner)
    loop.attach(runner)
    return runner


DEFAULT_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")


def _close_log_files(runner: Runner) -> None:
    for handler in list(runner.logger.handlers):
        if hasattr(handler, "baseFilename"):
            runner.logger.removeHandler(handler)
            handler.close()
