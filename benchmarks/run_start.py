"""What the start of a run costs: forked from a process that has imported, against a process of its own (B25).

    python benchmarks/run_start.py [--runs 4] [--folder DIR] [--json]

A study of `--runs` one-epoch pretrainings (5 optimiser steps of 20 images) goes through the local scheduler's launcher
one by one, once forked from one process (`jobs.local.preloaded`) and once each a process of submitit's local executor,
which imports for itself. Processor seconds (user and system, of all processes of a side, the one that imports and
submitit's controllers included) count, so that other work on the machine does not. Both sides must leave the same
encoder, to the bit.

Floor: the study of 4 takes half of the processor time. Aim: a third. Status 1 if the floor does not hold. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from measure import Measured, Target

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.jobs.local import launcher
from mimbench.jobs.studies.study import Run

TARGET = Target(floor=2.0, aim=3.0)
SMALL = ("epochs=1", "warmup_epochs=0", "batch=20", "compute.workers=0", "compute.threads=1")


class Spent:
    """The processor seconds of all descendants of this process; of one that has ended, all but the last `EVERY`."""

    EVERY = 0.05  # seconds between two looks

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}

    def look(self) -> None:
        """Read the times of the processes that live."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._seen[process.pid, process.create_time()] = times.user + times.system
        time.sleep(self.EVERY)

    @property
    def seconds(self) -> float:
        """The sum over all processes seen."""
        return sum(self._seen.values())


def study(runs: int, root: Path, forks: bool) -> tuple[float, list[str]]:
    """Processor seconds of a study of runs one after another, and the hash of each run's encoder."""
    launcher.FORKS = forks
    starting, spent, hashes = launcher.Launcher(threads=1, cores=1), Spent(), []
    for seed in range(runs):
        run = Run("pretrain/crossmae_handwritten", (*SMALL, f"seed={seed}")).directory(root)
        job = starting.submit(run, None)
        while not job.done():
            spent.look()
        assert run.state() == "done", job.output.read_text()
        hashes.append(hashlib.sha256(run.encoder.read_bytes()).hexdigest())
    starting.close()
    return spent.seconds, hashes


def main() -> int:
    """Measure, print, and say by the exit status whether the floor holds."""
    parser = argparse.ArgumentParser(description="What the start of a run costs (B25).")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--folder", help="where data and runs are written (default: the temporary one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = make_handwritten(Path(folder) / "data", 0, Sizes(100, 20, coco_train=8, coco_val=8))
        os.environ["MIMBENCH_DATA_HANDWRITTEN"] = str(data)
        ours, forked = study(options.runs, Path(folder) / "forked", forks=True)
        peer, alone = study(options.runs, Path(folder) / "alone", forks=False)
    assert forked == alone, "the encoders differ"
    note = f"{options.runs} runs, {(peer - ours) / options.runs:.1f} s saved each; encoders equal to the bit"
    measured = Measured("B25 start of runs", "s", ours, peer, TARGET if options.runs >= 4 else None, note)
    print(json.dumps(measured.row(), indent=2) if options.json else measured.line())
    return 1 if measured.failed else 0


if __name__ == "__main__":
    sys.exit(main())
