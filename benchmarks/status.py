"""How soon `mimbench plan`, `status`, `cost` and `submit --dry-run` answer with many runs under the root.

    python benchmarks/status.py [--runs 1000] [--repeats 5] [--json]
    python benchmarks/status.py --runs 500 1000 2000 --repeats 2        # how time and memory grow with the runs

A study of one pretraining and 999 evaluations, as directories that real code made: done, failed, running on another
machine, interrupted and new. Each command is a fresh process; the limit beside it is a fresh Python that reads the same
files and does nothing with them. Processes take turns, one warm-up each, and the least time counts. The counts of plan
and status must be those that the directories were made with, and no command may load torch.

Floor for 1,000 runs: plan 2 s, status 1 s. Aim: half of that. With several numbers of runs, processor time (of which
the start of Python is taken off) must grow no faster than the runs, with a tolerance of 15 %, and no command may take
500 MiB. Status 1 if a floor does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm.cluster import add
from mimbench.jobs.studies.study_files import load_study
from mimbench.jobs.studies.study_registry import add_members

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # tests is no installed package

from tests.jobs.encoder_file import encoder_bytes  # noqa: E402

FLOORS = {"plan": 2.0, "status": 1.0}  # seconds
MEMORY = 500  # MiB
TOLERANCE = 1.15  # of the growth
STUDY = """
from mimbench.jobs.studies.study import Run, Study
first = Run("pretrain/crossmae_handwritten")
study = Study("many", [first, *(
    Run("cls/finetune_handwritten", (f"seed={{seed}}",), first, f"fine-tune {{seed}}") for seed in range({count})
)])
"""
WATCHED = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
CALL = "import sys; from mimbench.jobs.cli.main import main; sys.argv = ['mimbench', *sys.argv[1:]]; main()"
READ = (
    "import pathlib, sys; files = [f for f in pathlib.Path(sys.argv[1]).rglob('*') if f.suffix in ('.json', '.txt')]; "
    "print(sum(len(f.read_bytes()) for f in files))"
)


def make(directory: Path, count: int) -> Counter[str]:
    """A study's file and the directories of all its runs; how many are in which state."""
    file, root = directory / "many.py", directory / "runs"
    file.write_text(STUDY.format(count=count - 1))
    study = load_study(str(file), root)
    made, states = list(study.prepare(root).values()), Counter[str]()
    add_members(root, study.name, {path: run.name for run, path in zip(study.runs, made, strict=True)})
    for index, run in enumerate(made):
        state = "done" if index == 0 else ("done", "failed", "running", "interrupted", "new")[index % 5]
        states[state] += 1
        _become(run, state)
    return states


def _become(run: RunDir, state: str) -> None:
    if state == "new":
        return
    number = run.begin_attempt()
    if run.path.parent.name == "pretrain":
        run.encoder.write_bytes(encoder_bytes("weights"))
    lines = (
        {"step": step, "epoch": step / 100, "loss": 2.5, "lr": 1e-3, "seconds": step} for step in range(0, 200, 20)
    )
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "done":
        write_result(run, Outcome({"finetune_top1": 83.3}, device="a GPU"), 3600.0)
    if state == "running":
        file = run.path / "attempts" / f"{number}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": "another"}))
    else:
        run.end_attempt(number, state, "the data are no good" if state == "failed" else "")  # type: ignore[arg-type]


class Taken(NamedTuple):
    """What a process took: seconds of the clock and of processors, and its largest memory in MiB."""

    seconds: float
    processor: float
    memory: float

    def least(self, other: Taken) -> Taken:
        """The smaller of each, but of memory the larger."""
        return Taken(
            min(self.seconds, other.seconds), min(self.processor, other.processor), max(self.memory, other.memory)
        )


def start(code: str, *arguments: str) -> tuple[Taken, str, str]:
    """What a fresh process takes, and what it printed."""
    began = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}: {texts[1]}{texts[0][-500:]}"
    return Taken(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), texts[0], texts[1]


def check(study: str, states: Counter[str]) -> None:
    """The commands count what is there, and load no torch."""
    for arguments in (("plan", study, "--json"), ("status", "--json"), ("cost", "--json")):
        _, out, err = start(WATCHED + CALL, *arguments)
        assert err.splitlines()[-1] == "False", f"{arguments[0]} loads torch"
        found = json.loads(out)["runs"] if arguments[0] in ("plan", "cost") else json.loads(out)
        counted = Counter(line["state"] for line in found)
        assert counted == states, f"{arguments[0]}: {dict(counted)} instead of {dict(states)}"


def measure(commands: dict[str, list[str]], repeats: int) -> dict[str, Taken]:
    """The least that each command takes."""
    best: dict[str, Taken] = {}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            taken = start(*command)[0]
            if turn or not repeats:
                best[name] = taken.least(best.get(name, taken))
    return best


def of_size(runs: int, repeats: int) -> dict[str, Taken]:
    """What the commands take with that many runs."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {
            "MIMBENCH_RUNS": str(Path(directory) / "runs"),
            "MIMBENCH_CLUSTERS": str(Path(directory) / "clusters"),
        }
        add("bench", ("partition=low", "gpus_per_node=0", "max_array=1001"))
        states, study = make(Path(directory), runs), str(Path(directory) / "many.py")
        start(CALL, "plan", study)  # the first one reads the encoder, with torch, and keeps its hash
        check(study, states)
        commands = {name: [CALL, name, *([study] if name == "plan" else [])] for name in ("plan", "status", "cost")}
        commands["submit --dry-run"] = [CALL, "submit", study, "--cluster", "bench", "--dry-run"]
        commands["with a budget"] = [*commands["submit --dry-run"], "--cpu-hours", "100000"]
        return measure({**commands, "reading alone": [READ, os.environ["MIMBENCH_RUNS"]]}, repeats)


def growth(fewer: tuple[int, Taken], more: tuple[int, Taken], empty: float) -> float:
    """How the processor time of a command grew, by the growth of the runs."""
    grown = (more[1].processor - empty) / max(0.01, fewer[1].processor - empty)
    return grown / (more[0] / fewer[0])


def main() -> int:
    """Measure, print, and say by the exit status whether the floors hold."""
    parser = argparse.ArgumentParser(description="How soon plan and status answer with many runs.")
    parser.add_argument("--runs", type=int, default=[1000], nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sizes = sorted(options.runs)
    empty = min(start("import mimbench.jobs.cli.main")[0].processor for _ in range(3))
    best = {runs: of_size(runs, options.repeats) for runs in sizes}
    failed = []
    for runs in sizes:
        for name, taken in best[runs].items():
            floor = FLOORS.get(name, math.inf) * max(1.0, runs / 1000)
            failed += [f"{name} of {runs} runs takes {taken.seconds:.2f} s"] if taken.seconds > floor else []
            failed += [f"{name} of {runs} runs takes {taken.memory:.0f} MiB"] if taken.memory > MEMORY else []
    for fewer, more in itertools.pairwise(sizes):
        for name in set(best[more]) - {"reading alone"}:
            grown = growth((fewer, best[fewer][name]), (more, best[more][name]), empty)
            failed += [f"{name} grows {grown:.2f} times as fast as the runs"] if grown > TOLERANCE else []
    if options.json:
        shown = {runs: {name: taken._asdict() for name, taken in of.items()} for runs, of in best.items()}
        print(json.dumps({"best": shown, "floors": FLOORS, "memory": MEMORY, "failed": failed}, indent=2))
    else:
        for runs, of in best.items():
            for name, taken in of.items():
                times = f"{taken.seconds:6.3f} s, processor {taken.processor:6.3f} s"
                print(f"{name:<17} {runs} runs {times}, {taken.memory:4.0f} MiB")
        print("\n".join(failed) or f"ok (floors for 1,000 runs: {FLOORS} s, {MEMORY} MiB; growth at most {TOLERANCE})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
