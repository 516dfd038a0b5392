"""A sweep with early stopping on a real SLURM against the same grid without it: steps spent, and the best run of each.

    python benchmarks/asha.py DIRECTORY --checkpoint ENCODER [--runs 27] [--minutes 7]      # root; repeat it to the end

27 linear probes of one encoder with learning rates of even ratio, of 27 epochs each, with rungs after 3 and 9, at which
one in three goes on. The grid runs in this process; the sweep runs as jobs of a private SLURM with two nodes, and those
that run at one moment on the way are preempted. Everything is kept in DIRECTORY. A session ends after `--minutes`: its
jobs are killed, and the next session submits the sweep again.

Asked: at most .34 of the grid's steps, the same best run, and at each evaluation that a run reached the very metric
that it has in the grid, although runs were stopped, preempted, killed and resumed. Status 1 if one does not hold, 2 if
the session ended before the sweep.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.slurm.cluster import add, load
from mimbench.jobs.studies.plan import plan
from mimbench.jobs.studies.study import Study
from mimbench.jobs.studies.submit import submit_cluster
from mimbench.jobs.studies.sweep import axis, grid, sweep_of

ROOT = Path(__file__).parent.parent
METRIC, EPOCHS, RUNGS, KEEP, MOST = "linear_top1", 27, (3, 9), 3, 0.34
FIXED = (f"epochs={EPOCHS}", "warmup_epochs=0", "batch=20", "evaluate_every=3", "compute.log_every=10")
POLL = 5.0  # seconds


def study_of(checkpoint: Path, runs: int, rungs: bool) -> Study:
    """The sweep, with or without early stopping."""
    axes = [axis(f"base_lr=1..3e3:log{runs}"), *map(axis, (*FIXED, f"checkpoint={checkpoint.absolute()}"))]
    made = sweep_of("cls/linear_handwritten", axes, grid(axes), "asha")
    return (made.halved(RUNGS, KEEP, METRIC) if rungs else made).study()


def in_this_process(study: Study, root: Path) -> dict[str, RunDir]:
    """Run what is not done yet; the runs by label."""
    made = {run.name: directory for run, directory in study.prepare(root).items()}
    for directory in made.values():
        assert execute(directory) == 0
    return made


def session(study: Study, root: Path, minutes: float) -> bool:
    """Submit the sweep to a SLURM of its own and wait; whether every run ended by itself."""
    sys.path.insert(0, str(ROOT))  # tests is no installed package
    from tests.slurm.cluster import Cluster, missing

    if why := missing():
        raise SystemExit(f"error: {why}")
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="asha-") as scratch:
        daemons = Cluster(Path(scratch) / "slurm")
        try:
            daemons.start()
            os.environ["SLURM_CONF"] = str(daemons.conf)
            add("asha", ("partition=low", "gpus_per_node=0", "cpus_per_task=1", "minutes=30", "signal_seconds=90"))
            return _wait(study, root, deadline, daemons.ask)
        finally:
            daemons.stop()


def _wait(study: Study, root: Path, deadline: float, ask: Callable[..., str]) -> bool:
    counts: dict[str, int] = {}
    while time.monotonic() < deadline:
        now = plan(study, root).counts
        if now != counts:
            print(f"{deadline - time.monotonic():4.0f} s left: {now}", flush=True)
            counts = now
        if not set(now) - {"done", "stopped"}:
            return True
        if not {"queued", "running"} & set(now):
            submit_cluster(study, root, load("asha"))
        mark = root / "preempted"
        if now.get("stopped", 0) + now.get("done", 0) >= 3 and now.get("running", 0) > 1 and not mark.exists():
            ask("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
            mark.touch()
            print("a job of the partition of higher priority preempts the running ones", flush=True)
        time.sleep(POLL)
    return False


def steps_of(run: RunDir) -> int:
    """The optimiser steps that a run trained, those repeated after a kill counted once."""
    return max((line["step"] for line in _lines(run)), default=0)


def metrics_of(run: RunDir) -> dict[int, float]:
    """The metric at each step that was evaluated; a repeated evaluation must have given the same."""
    found: dict[int, float] = {}
    for line in _lines(run):
        if METRIC in line:
            assert found.setdefault(line["step"], line[METRIC]) == line[METRIC], f"{run.path} is not repeatable"
    return found


def _lines(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(text) for text in run.metrics.read_text().splitlines()] if run.metrics.exists() else []


def compare(full: dict[str, RunDir], halved: dict[str, RunDir]) -> list[str]:
    """Print what was spent and found; what does not hold."""
    steps = [sum(map(steps_of, runs.values())) for runs in (full, halved)]
    ends = [
        {name: metrics_of(run)[steps_of(run)] for name, run in runs.items() if run.result.exists()}
        for runs in (full, halved)
    ]
    best = [max(found, key=lambda name: found[name]) for found in ends]
    ties = [name for name, value in ends[0].items() if value == ends[0][best[0]]]
    differ = [name for name in full if not metrics_of(halved[name]).items() <= metrics_of(full[name]).items()]
    attempts = [attempt for run in halved.values() for attempt in run.attempts()]
    stopped = sum(run.state() == "stopped" for run in halved.values())
    interrupted = sum(attempt["state"] not in ("done", "stopped") for attempt in attempts)
    print(f"grid: {len(full)} runs, {steps[0]} steps, best {METRIC} {ends[0][best[0]]:.4g} with {', '.join(ties)}")
    print(
        f"sweep with rungs: {steps[1]} steps, {steps[1] / steps[0]:.3f} of the grid's (at most {MOST}); "
        f"{stopped} stopped, {len(ends[1])} went to the end; {len(attempts)} starts, {interrupted} interrupted; "
        f"best {ends[1][best[1]]:.4g} with {best[1]}"
    )
    wrong = [f"{name} has other metrics than in the grid" for name in differ]
    wrong += [] if steps[1] <= MOST * steps[0] else ["more steps than asked"]
    return wrong + ([] if best[1] in ties else ["another best run"])


def main() -> int:
    """Run the grid and a session of the sweep, and compare them at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="an encoder for handwritten, as `make demo` leaves"
    )
    parser.add_argument("--runs", type=int, default=27)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument(
        "--grid-only", action="store_true", help="run the grid, print its metrics at the rungs, and end"
    )
    options = parser.parse_args()
    directory = options.directory.absolute()
    digits = directory / "digits"
    if not digits.exists():
        make_handwritten(digits, 0, Sizes(400, 1000, coco_train=8, coco_val=8))
    os.environ |= {"MIMBENCH_DATA_HANDWRITTEN": str(digits), "MIMBENCH_HOME": str(directory / "home")}
    full = in_this_process(study_of(options.checkpoint, options.runs, rungs=False), directory / "grid")
    if options.grid_only:
        for name, run in full.items():
            print(name, *metrics_of(run).values())
        return 0
    root, study = directory / "asha", study_of(options.checkpoint, options.runs, rungs=True)
    if not session(study, root, options.minutes):
        print("the session ended before the sweep; repeat the command to go on")
        return 2
    halved = {run.name: directory for run, directory in study.prepare(root).items()}
    wrong = compare(full, halved)
    print("\n".join(wrong) or "ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
