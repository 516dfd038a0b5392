"""The faults of tests/slurm/survival_table.py that strike a run or SLURM's daemons: one function for each.

Each gets a scene, submits its run there and does its damage; then the table waits for the end of the run and compares
it with an undisturbed one. `alone` marks those that disturb the whole cluster. Those never tried before come first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mimbench.engine.run.rundir import HEARTBEAT
from mimbench.jobs.slurm.job import steps_done
from mimbench.jobs.slurm.schedulers import requeue
from tests.slurm import processes
from tests.slurm.cluster import wait_for
from tests.slurm.scene import START, Outcome, Scene

Act = Callable[[Scene], Outcome | None]
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@dataclass(frozen=True)
class Fault:
    """A row of the table. An act that returns an outcome has no run to wait for."""

    name: str
    title: str
    act: Act
    alone: bool
    accounting: bool  # needs the accounting database


FAULTS: dict[str, Fault] = {}


def fault(title: str, alone: bool = False, accounting: bool = False) -> Callable[[Act], Act]:
    """Add a function to the table."""

    def add(act: Act) -> Act:
        name = act.__name__.replace("_", "-")
        FAULTS[name] = Fault(name, title, act, alone, accounting)
        return act

    return add


@fault("munge stops; meanwhile the run ends", alone=True)
def munge_gone_at_the_end(scene: Scene) -> None:
    """The run needs no SLURM to end; SLURM hears of it when munge is back."""
    scene.begin()
    munged = scene.cluster.munged
    assert munged is not None
    munged.kill()
    munged.wait()
    try:
        wait_for(scene.run.result.exists, START, "the run's result")
        scene.beside.append(f"done while munge was gone; status said {scene.status(scene.run)}")
    finally:
        scene.cluster.start_munge()
    wait_for(
        lambda: scene.job not in scene.cluster.ask("squeue", "-h", "-o", "%i"), START, "the job to leave the queue"
    )


@fault("munge stops; meanwhile the run's process is killed", alone=True)
def munge_gone_and_a_kill(scene: Scene) -> None:
    """The end of the job cannot requeue it until munge is back."""
    scene.begin()
    munged = scene.cluster.munged
    assert munged is not None
    munged.kill()
    munged.wait()
    try:
        processes.by_rank(scene.run)[0].kill()
        time.sleep(20)
    finally:
        scene.cluster.start_munge()


@fault("SLURM's process of the step is killed (`slurmstepd: [12.0]`)")
def step_killed(scene: Scene) -> None:
    """srun loses the run."""
    scene.begin()
    for process in processes.of_slurm(f"slurmstepd: [{scene.job}.0]"):
        process.kill()


@fault("SLURM's process of the step and the run are killed")
def step_and_run_killed(scene: Scene) -> None:
    """Nothing is left that could tell srun; the job's shell looks, here every ten seconds, and ends it."""
    scene.setup("export MIMBENCH_JOB_LOOK=10")
    scene.begin()
    for process in [*processes.of_slurm(f"slurmstepd: [{scene.job}.0]"), *processes.of_run(scene.run)]:
        process.kill()


@fault("SLURM's process of the batch script is killed (`slurmstepd: [12.batch]`)")
def batch_daemon_killed(scene: Scene) -> None:
    """The shell is an orphan then."""
    scene.begin()
    for process in processes.of_slurm(f"slurmstepd: [{scene.job}.batch]"):
        process.kill()


@fault("slurmctld is killed and restarted", alone=True)
def slurmctld_killed(scene: Scene) -> None:
    """Jobs run on."""
    scene.begin()
    controller = scene.cluster.controller
    assert controller is not None
    controller.kill()
    controller.wait()
    time.sleep(3)
    scene.cluster.start_controller()


@fault("slurmctld is killed; meanwhile the run's process is killed", alone=True)
def slurmctld_killed_and_a_kill(scene: Scene) -> None:
    """Nobody can be asked to requeue the job for a while."""
    scene.begin()
    controller = scene.cluster.controller
    assert controller is not None
    controller.kill()
    controller.wait()
    processes.by_rank(scene.run)[0].kill()
    time.sleep(20)
    scene.cluster.start_controller()


@fault("slurmd is killed and restarted", alone=True)
def slurmd_killed(scene: Scene) -> None:
    """The run goes on; slurmd finds it again."""
    scene.begin()
    node = scene.node
    daemon = scene.cluster.nodes[node]
    daemon.kill()
    daemon.wait()
    time.sleep(3)
    scene.cluster.start_node(node)


@fault("a node is cut off: the job starts elsewhere, the first copy still runs", alone=True)
def requeued_beside_its_first_copy(scene: Scene) -> None:
    """slurmd stands still, the node is declared down; the first copy stands still until the second trains."""
    scene.begin()
    node = scene.node
    daemon = scene.cluster.nodes[node]
    os.kill(daemon.pid, 19)
    first = processes.by_rank(scene.run)[0]
    first.suspend()
    scene.cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        wait_for(lambda: len(scene.run.attempts()) == 2, START, "a second start")
        with processes.paused(scene.run):  # the second copy waits while the first goes on until its next heartbeat
            first.resume()
            began = time.monotonic()
            wait_for(lambda: not first.is_running() or first.status() == "zombie", START, "the end of the first copy")
            taken = time.monotonic() - began
        scene.beside.append(f"the first copy ended itself {taken:.0f} s after it could run again")
        scene.doubled += taken if taken > 2 * HEARTBEAT else 0.0  # less is as soon as it can know
    finally:
        os.kill(daemon.pid, 18)
        scene.cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


@fault("the node is drained", alone=True)
def node_drained(scene: Scene) -> None:
    """The run may end there."""
    scene.begin()
    node = scene.node
    scene.cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    wait_for(lambda: steps_done(scene.run) >= 15, START, "progress")
    scene.cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


@fault("the node goes down", alone=True)
def node_down(scene: Scene) -> None:
    """SLURM starts the job on the other node."""
    scene.begin()
    node = scene.node
    scene.cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        wait_for(lambda: len(scene.run.attempts()) == 2 or "is held" in scene.remark(), START, "a second start")
    finally:
        scene.cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


@fault("clocks of the nodes two hours ahead; the process is killed")
def clock_ahead(scene: Scene) -> None:
    """Heartbeats are by the file server's clock."""
    _with_clock(scene, "+2h")


@fault("clocks of the nodes two hours behind; the process is killed")
def clock_behind(scene: Scene) -> None:
    """As with one that is ahead."""
    _with_clock(scene, "-2h")


def _with_clock(scene: Scene, offset: str) -> None:
    if not Path(FAKETIME).exists():
        raise FileNotFoundError(f"{FAKETIME}: apt-get install faketime")
    scene.setup(f"export LD_PRELOAD={FAKETIME} FAKETIME={offset} FAKETIME_DONT_FAKE_MONOTONIC=1")
    scene.begin()
    processes.by_rank(scene.run)[0].kill()


@fault("two nodes (gloo), undisturbed")
def two_nodes(scene: Scene) -> None:
    """A process on each of two nodes."""
    scene.begin(step=0, tasks=1, nodes=2)
    scene.tasks = 2


@fault("two nodes (gloo); the process of the second is killed")
def two_nodes_and_a_kill(scene: Scene) -> None:
    """The other ends, and the job is requeued."""
    scene.begin(tasks=1, nodes=2)
    scene.tasks = 2
    processes.by_rank(scene.run)[1].kill()


@fault("preempted by REQUEUE, announced by SIGUSR2", alone=True)
def preempted(scene: Scene) -> None:
    """As in tests/slurm/test_survival.py."""
    scene.begin()
    scene.preempt()
    wait_for(lambda: scene.status(scene.run) != "running", START, "the preemption")


@fault("preempted by REQUEUE, by SIGTERM alone", alone=True)
def preempted_by_sigterm(scene: Scene) -> None:
    """Most sites do not announce it."""
    scene.cluster.restart_controller(user_signal=False)
    try:
        preempted(scene)
        wait_for(lambda: scene.status(scene.run) in ("running", "done"), START, "the restart")
    finally:
        scene.cluster.restart_controller(user_signal=True)


@fault("preempted by CANCEL, announced by SIGUSR2", alone=True)
def preempted_by_cancel(scene: Scene) -> None:
    """SLURM does not start such a job again; the job asks for it before it is cancelled."""
    scene.profile = replace(scene.profile, partition="spot")
    preempted(scene)


@fault("preempted by CANCEL, by SIGTERM alone", alone=True)
def preempted_by_cancel_and_sigterm(scene: Scene) -> None:
    """As the one that is announced."""
    scene.profile = replace(scene.profile, partition="spot")
    preempted_by_sigterm(scene)


@fault("preempted by CANCEL, by SIGTERM alone, without a grace time", alone=True)
def preempted_by_cancel_at_once(scene: Scene) -> None:
    """SLURM has ended such a job when it asks to be requeued."""
    scene.profile = replace(scene.profile, partition="spot0")
    preempted_by_sigterm(scene)


@fault("the time limit, announced by SIGUSR2")
def time_limit(scene: Scene) -> None:
    """SLURM signals a job whose end is near."""
    scene.profile = replace(scene.profile, signal_seconds=600)
    scene.begin()
    with processes.paused(scene.run):
        scene.cluster.ask("scontrol", "update", f"JobId={scene.job}", "TimeLimit=6")
        wait_for(lambda: scene.status(scene.run) == "queued", START, "the signal")
    wait_for(lambda: not scene.cluster.ask("scontrol", "update", f"JobId={scene.job}", "TimeLimit=30"), 5, "more time")


def _signal(name: str, *options: str) -> Act:
    def act(scene: Scene) -> None:
        scene.begin()
        scene.cluster.ask("scancel", f"--signal={name}", *options, scene.job)

    act.__name__ = f"scancel_{name.lower()}{''.join(option.replace('--', '_') for option in options)}"
    fault(f"`scancel --signal={' '.join([name, *options])}`")(act)
    return act


for _name, _options in (("USR1", ()), ("USR2", ()), ("TERM", ()), ("INT", ()), ("TERM", ("--full",)),
                        ("USR2", ("--batch",)), ("HUP", ("--batch",)), ("KILL", ("--batch",))):  # fmt: skip
    _signal(_name, *_options)


@fault("`scontrol requeue`")
def requeued(scene: Scene) -> None:
    """By a person."""
    scene.begin()
    scene.cluster.ask("scontrol", "requeue", scene.job)


@fault("`scontrol requeuehold`: status names it, `mimbench retry` releases it")
def requeued_and_held(scene: Scene) -> None:
    """It waits until a person releases it, and status says so."""
    scene.begin()
    scene.cluster.ask("scontrol", "requeuehold", scene.job)
    wait_for(lambda: "is held" in scene.remark(), 60, "a remark that the job is held")
    scene.beside.append(scene.remark())
    requeue([scene.run], scene.profile, scene.root)


@fault("`scontrol suspend`, then `resume`")
def suspended(scene: Scene) -> None:
    """It stands still."""
    scene.begin()
    scene.cluster.ask("scontrol", "suspend", scene.job)
    time.sleep(5)
    scene.beside.append(f"while suspended: {scene.status(scene.run)}")
    scene.cluster.ask("scontrol", "resume", scene.job)


def _cancelled(name: str, title: str, *options: str) -> Act:
    def act(scene: Scene) -> None:
        scene.begin()
        scene.cluster.ask("scancel", *options, scene.job)
        wait_for(lambda: scene.status(scene.run) == "interrupted", START, "the end")
        time.sleep(5)
        assert scene.status(scene.run) == "interrupted", "what a person cancels stays cancelled"
        requeue([scene.run], scene.profile, scene.root)

    act.__name__ = name
    fault(title)(act)
    return act


_cancelled("cancelled_and_retried", "`scancel`, then `mimbench retry`")
_cancelled("scancel_kill", "`scancel --signal=KILL`, which cancels the job; then `mimbench retry`", "--signal=KILL")


@fault("the run's process is killed")
def python_killed(scene: Scene) -> None:
    """SIGKILL."""
    scene.begin()
    processes.by_rank(scene.run)[0].kill()


@fault("the shell of the job is killed")
def shell_killed(scene: Scene) -> None:
    """SIGKILL; the run requeues the job."""
    scene.begin()
    shell = processes.by_rank(scene.run)[0].environ()["MIMBENCH_JOB_SHELL"].rpartition(":")[2]
    os.kill(int(shell), 9)


def _killed_before(part: str, what: str) -> Act:
    def act(scene: Scene) -> None:
        scene.create()
        scene.kill_before_rename(part)
        scene.begin(step=0)

    act.__name__ = f"killed_while_{what}_is_written"
    fault(f"killed while the {what} is written")(act)
    return act


for _part, _what in (("attempts/1.json", "attempt"), ("step-00000015.pt", "checkpoint"),
                     ("encoder.safetensors", "encoder"), ("result.json", "result")):  # fmt: skip
    _killed_before(_part, _what)
