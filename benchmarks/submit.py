"""B21: handing 1,000 runs to SLURM, as we do it (an array) and one by one through submitit.

    python benchmarks/submit.py [--runs 1000] [--singles 1000] [--json]      # a stand-in for sbatch: our side's time
    python benchmarks/submit.py --real 40                                    # a real SLURM, started for this (root)

The stand-in answers at once, so that what is timed is this side's work: deciding, the snapshot of the code, the notes
on disk, the sbatch file. Each side asks for the same resources (asserted on the files). One by one, submitit waits
0.2 s between two jobs, so that a controller is not flooded: 1,000 take minutes, and --singles takes fewer of them and
counts up. `--real` has the jobs held and cancels them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.schedulers import Unit, submit

FLOOR, AIM, LIMIT = 1.0, 0.3, 0.05  # seconds on our side for 1,000 runs
NOT_COMPARED = re.compile(r"--(array|job-name|output|error|signal|requeue|kill-on-invalid-dep|wckey)")
SBATCH = """#!/bin/sh
echo call >> "$SBATCH_CALLS"
cp "$1" "$SBATCH_CALLS.sh"
echo "Submitted batch job $(wc -l < "$SBATCH_CALLS")"
"""


def main() -> int:
    """Measure, print; 1 if slower than the floor or with more than one call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--singles", type=int, default=1000, help="of those, how many are handed in one by one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real", type=int, metavar="N", help="hand in N runs to a real SLURM instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mimbench-submit-") as scratch:
        measured = _real(Path(scratch), options.real) if options.real else _stand_in(Path(scratch), options)
    print(json.dumps(measured, indent=2) if options.json else _lines(measured))
    return 1 if measured["failed"] else 0


def _stand_in(scratch: Path, options: argparse.Namespace) -> dict[str, object]:
    with _fake_sbatch(scratch) as calls:
        ours = []
        for number in range(options.repeats + 1):
            root = scratch / f"runs{number}"
            units = _units(root, options.runs)
            calls.write_text("")
            began = time.perf_counter()
            sent = submit(units, _profile(), root)
            ours.append(time.perf_counter() - began)
            assert len(sent) == options.runs
            made = len(calls.read_text().splitlines())
        array = _resources(Path(f"{calls}.sh"))
        calls.write_text("")
        singly = _one_by_one(scratch / "singles", options.singles)
        assert array == _resources(Path(f"{calls}.sh")), "both sides ask for the same resources"
    took = min(ours[1:])
    scaled = singly / options.singles * options.runs
    return {
        "name": "B21",
        "runs": options.runs,
        "ours": took,
        "calls": made,
        "peer": scaled,
        "peer_measured": options.singles,
        "ratio": scaled / took,
        "floor": FLOOR,
        "aim": AIM,
        "limit": LIMIT,
        "failed": took > FLOOR * options.runs / 1000 or made != 1,
    }


def _real(scratch: Path, runs: int) -> dict[str, object]:
    """Held jobs on a SLURM of two made-up nodes."""
    sys.path.insert(0, str(Path(__file__).parent.parent))  # tests is no installed package
    from tests.slurm.cluster import Cluster as Daemons
    from tests.slurm.cluster import missing

    if why := missing():
        raise SystemExit(f"error: {why}")
    daemons = Daemons(scratch / "slurm")
    try:
        daemons.start()
        os.environ["SLURM_CONF"] = str(daemons.conf)
        began = time.perf_counter()
        sent = submit(_units(scratch / "runs", runs), _profile(sbatch=("--hold",), max_array=None), scratch / "runs")
        ours = time.perf_counter() - began
        singly = _one_by_one(scratch / "singles", runs, hold=True)
    finally:
        daemons.stop()
    arrays = len({each.array or each.job for each in sent})  # type: ignore[union-attr]
    return {
        "name": "B21 real", "runs": runs, "ours": ours, "calls": arrays, "peer": singly, "peer_measured": runs,
        "ratio": singly / ours, "failed": singly < ours,
    }  # fmt: skip


def _lines(measured: dict[str, object]) -> str:
    shown = SimpleNamespace(**measured)
    counted = "" if shown.peer_measured == shown.runs else f", counted up from {shown.peer_measured}"
    asked = f"  (floor {FLOOR} s, aim {AIM} s, limit {LIMIT} s)" if "floor" in measured else ""
    verdict = "BELOW THE FLOOR" if shown.failed else "ok"
    return (
        f"{shown.name}  {shown.runs} runs: ours {shown.ours:.3f} s in {shown.calls} calls of sbatch, one by one "
        f"{shown.peer:.1f} s in {shown.runs}{counted}; {shown.ratio:.0f} times as fast{asked}: {verdict}"
    )


@contextmanager
def _fake_sbatch(scratch: Path) -> Iterator[Path]:
    """Within, `sbatch` and `srun` are found and answer at once; where calls are counted."""
    folder, calls = scratch / "bin", scratch / "calls"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text(SBATCH)
        (folder / name).chmod(0o755)
    found = {"PATH": f"{folder}:{os.environ['PATH']}", "SBATCH_CALLS": str(calls)}
    with patch.dict(os.environ, found), patch("mimbench.jobs.slurm.sbatch.KEPT", ("SBATCH_CALLS",)):
        yield calls


def _profile(**changes: object) -> Cluster:
    settings = {"name": "bench", "partition": "low", "gpus_per_node": 0, "cpus_per_task": 1, "max_array": 1001}
    return Cluster(**{**settings, **changes})  # type: ignore[arg-type]


def _units(root: Path, count: int) -> list[Unit]:
    shape, made = _profile().shape(minutes=10), []
    for number in range(count):
        run = RunDir(root / "cls" / f"knn-{number:010x}")
        run.path.mkdir(parents=True)
        run.about.write_text("{}")
        made.append(Unit(run, shape, (), "knn"))
    return made


def _one_by_one(folder: Path, count: int, hold: bool = False) -> float:
    """Seconds of `count` submissions through submitit, each a job of its own."""
    import submitit

    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(
        partition="low",
        time=10,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=1,
        **({"additional_parameters": {"hold": True}} if hold else {}),
    )
    began = time.perf_counter()
    for number in range(count):
        executor.submit(print, number)
    return time.perf_counter() - began


def _resources(file: Path) -> list[str]:
    lines = file.read_text().splitlines()
    return sorted(line for line in lines if line.startswith("#SBATCH") and not NOT_COMPARED.search(line))


if __name__ == "__main__":
    sys.exit(main())
