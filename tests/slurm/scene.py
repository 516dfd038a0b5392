"""One fault on one tiny run on a real SLURM: the run, how it ended, and what was lost, doubled, stuck or silent."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.store import create_or_find, resolve
from mimbench.jobs.slurm import commands, schedulers, submission
from mimbench.jobs.slurm.cluster import Cluster as Profile
from mimbench.jobs.slurm.job import steps_done
from mimbench.jobs.slurm.snapshot import snapshot
from tests.slurm import processes
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import LONG, PRETRAIN, Site

TINY = (*LONG, "epochs=4", "batch=4", "compute.workers=0")  # 100 steps; most of the time is torch's import
START = 600.0  # seconds for a run to start and save a checkpoint, on a machine that does other things as well
PATIENCE = 900.0  # seconds without a start or a checkpoint after which a run does not end by itself
REST = 20.0  # seconds in a state that does not change by itself after which a run counts as left behind
AT_REST = ("failed", "interrupted", "lost", "blocked", "new", "stopped")

KILL_BEFORE_RENAME = """\
import os, signal

def kills(call):
    def wrapped(source, target, *arguments, **named):
        if {part!r} in os.fspath(target) and not os.path.exists({mark!r}):
            open({mark!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return call(source, target, *arguments, **named)
    return wrapped

os.replace, os.rename, os.link = kills(os.replace), kills(os.rename), kills(os.link)
"""


Reference = Callable[[int], tuple[str, list[Any]]]  # number of processes -> sha256 and losses when undisturbed


@dataclass(frozen=True)
class Outcome:
    """What a fault did to a run."""

    ended: str  # "done", "done after `mimbench retry`", or what else happened
    same: bool | None = None  # are the weights those of the undisturbed run? None: nothing was trained
    starts: str = ""  # the step at which each start of the run began
    lost: str = ""
    doubled: str = ""
    stuck: str = ""
    silent: str = ""
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        """Nothing is lost, doubled, stuck or silent, and the weights are right."""
        return self.same is not False and not (self.lost or self.doubled or self.stuck or self.silent)

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as JSON."""
        return asdict(self)


class Scene(Site):
    """A runs root with one run, and what faults do there."""

    def __init__(self, root: Path, profile: Profile, cluster: Cluster, reference: Reference | None = None) -> None:
        super().__init__(root, profile, cluster)
        self.reference = reference
        self.tasks = 1
        self.run = RunDir(root)
        self.doubled = 0.0
        self.beside: list[str] = []

    def create(self) -> RunDir:
        """Create the run."""
        recipe, config = resolve(PRETRAIN, TINY)
        self.run = create_or_find(recipe.name, config, self.root)
        self.run = RunDir(self.run.path.absolute())
        return self.run

    def begin(self, step: int = 10, tasks: int = 1, **shape: int) -> RunDir:
        """Create and submit the run, and wait until it has saved a checkpoint at `step`."""
        self.tasks = tasks
        self.submit(self.create(), tasks=tasks, **shape)
        if step:
            self.wait_for_step(self.run, step, START)
        return self.run

    def kill_before_rename(self, part: str) -> None:
        """Make the run kill itself by SIGKILL, once, just before a file whose path has `part` gets its name."""
        code = Path(str(snapshot(self.root.absolute())["snapshot"]))
        mark = str(self.root.absolute().parent / "killed")
        (code / "sitecustomize.py").write_text(KILL_BEFORE_RENAME.format(part=part, mark=mark), encoding="utf-8")

    @property
    def job(self) -> str:
        """The id of the run's job."""
        found = submission.read(self.run)
        assert found is not None
        return str(found.job)

    @property
    def node(self) -> str:
        """The node that runs the job."""
        return self.cluster.ask("squeue", "-h", "-j", self.job, "-o", "%N").strip()

    def setup(self, *lines: str) -> None:
        """Add shell lines before the run."""
        self.profile = replace(self.profile, setup=(*self.profile.setup, *lines))

    def remark(self) -> str:
        """What mimbench says of a run that waits or hangs."""
        return schedulers.remark(self.run, commands.queue(self.profile, self.root))

    def create_knn(self) -> RunDir:
        """Create a k-NN evaluation of an untrained encoder instead."""
        recipe, config = resolve("cls/knn_handwritten", ("neighbours=10,20",))
        self.run = RunDir(create_or_find(recipe.name, config, self.root).path.absolute())
        return self.run

    def kill_now(self) -> bool:
        """Kill the process of rank 0; return whether there was one."""
        found = processes.by_rank(self.run).get(0)
        if found is not None:
            found.kill()
        return found is not None

    def settle(self) -> Outcome:
        """Wait for the end of the run, by itself or after `mimbench retry`; return what the fault did."""
        ended, stuck, silent = "done", "", ""
        if not self._ends():
            status, said = self.status(self.run), self.remark() or self.why()
            ended, stuck = f"{status} until `mimbench retry`", f"{status}: {said}" if said else status
            silent = status if status in ("running", "queued") and not said else ""
            ended = ended if self._ends_after_retry() else f"{status}, and `mimbench retry` does not help"
        wait_for(lambda: not processes.of_run(self.run), START, f"the processes of {self.run.path.name} to end")
        done = self.run.result.exists()
        if done and not stuck:
            try:
                wait_for(
                    lambda: self.job not in self.cluster.ask("squeue", "-h", "-o", "%i").split(),
                    START,
                    "its job to end",
                )
            except TimeoutError:
                stuck = "the run is done, but its job stays in the queue"
        weights, losses = self.reference(self.tasks) if done and self.reference is not None else ("", [])
        lost = "" if not done or losses_of(self.run) == losses else "the lines of metrics.jsonl differ"
        starts = ", ".join(str(attempt.get("step", 0)) for attempt in self.run.attempts())
        both = f"two copies ran for {self.doubled:.0f} s" if self.doubled > 1 else ""
        return Outcome(ended, done and weights_of(self.run) == weights, starts, lost, both, stuck, silent)

    def why(self) -> str:
        """Return the reason that the run's last start left."""
        attempts = self.run.attempts()
        return str(attempts[-1].get("why", "")) if attempts else ""

    def _ends(self) -> bool:
        """Wait; return whether the run is done. Counts the time in which two processes train it."""
        seen, since, rested, before = (0, 0), time.monotonic(), 0.0, time.monotonic()
        while time.monotonic() < since + PATIENCE and rested < REST:
            status = self.status(self.run)
            if status == "done":
                return True
            now = time.monotonic()
            if (progress := (len(self.run.attempts()), steps_done(self.run))) != seen:
                seen, since = progress, now
            passed, before = now - before, now
            rested = rested + passed if status in AT_REST else 0.0
            self.doubled += passed * (processes.copies(self.run) > 1)
            time.sleep(1.0)
        return False

    def _ends_after_retry(self) -> bool:
        try:
            schedulers.requeue([self.run], self.profile, self.root)
        except (ValueError, OSError) as error:
            self.beside.append(str(error))
            return False
        return self._ends()


def weights_of(run: RunDir) -> str:
    """The sha256 of the encoder that a run has made."""
    return hashlib.sha256(run.encoder.read_bytes()).hexdigest()


def losses_of(run: RunDir) -> list[tuple[int, float]]:
    """Step and loss of every line that a training step wrote."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "lr" in line]
