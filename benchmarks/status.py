"""How soon `mimbench plan`, `status` and `cost` answer with many runs under the root.

    python benchmarks/status.py [--runs 1000] [--repeats 5] [--json]

A study of one pretraining and 999 evaluations, as directories that real code made: done, failed, running on another
machine, interrupted and new. Each command is a fresh process; the limit beside it is a fresh Python that reads the same
files and does nothing with them. Processes take turns, one warm-up each, and the least time counts. The counts of plan
and status must be those that the directories were made with, and no command may load torch.

Floor for 1,000 runs: plan 2 s, status 1 s. Aim: half of that. Status 1 if a floor does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.studies.study_files import load_study
from mimbench.jobs.studies.study_registry import add_members

ROOT = Path(__file__).parent.parent
FLOORS = {"plan": 2.0, "status": 1.0}  # seconds
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
        values = hashlib.sha256(b"weights").digest()
        header = {"__metadata__": {"mimbench": "{}"}, "w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}
        packed = json.dumps(header).encode()
        run.encoder.write_bytes(len(packed).to_bytes(8, "little") + packed + values)
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


def start(code: str, *arguments: str) -> tuple[float, str, str]:
    """Seconds that a fresh process takes, and what it printed."""
    began = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout, done.stderr


def check(study: str, states: Counter[str]) -> None:
    """The commands count what is there, and load no torch."""
    for arguments in (("plan", study, "--json"), ("status", "--json"), ("cost", "--json")):
        _, out, err = start(WATCHED + CALL, *arguments)
        assert err.splitlines()[-1] == "False", f"{arguments[0]} loads torch"
        found = json.loads(out)["runs"] if arguments[0] in ("plan", "cost") else json.loads(out)
        counted = Counter(line["state"] for line in found)
        assert counted == states, f"{arguments[0]}: {dict(counted)} instead of {dict(states)}"


def measure(commands: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """The least seconds of each command."""
    best = dict.fromkeys(commands, float("inf"))
    for turn in range(repeats + 1):
        for name, command in commands.items():
            seconds = start(*command)[0]
            if turn:
                best[name] = min(best[name], seconds)
    return best


def main() -> int:
    """Measure, print, and say by the exit status whether the floors hold."""
    parser = argparse.ArgumentParser(description="How soon plan and status answer with many runs.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MIMBENCH_RUNS"] = str(Path(directory) / "runs")
        states, study = make(Path(directory), options.runs), str(Path(directory) / "many.py")
        check(study, states)
        commands = {name: [CALL, name, *([study] if name == "plan" else [])] for name in ("plan", "status", "cost")}
        best = measure({**commands, "reading alone": [READ, os.environ["MIMBENCH_RUNS"]]}, options.repeats)
    failed = [name for name, floor in FLOORS.items() if best[name] > floor * max(1.0, options.runs / 1000)]
    if options.json:
        print(json.dumps({"runs": options.runs, "seconds": best, "floors": FLOORS, "failed": failed}, indent=2))
    else:
        for name, seconds in best.items():
            floor = FLOORS.get(name)
            verdict = (
                "" if floor is None else f"  (floor {floor}, aim {floor / 2}: {'MISSED' if name in failed else 'ok'})"
            )
            print(f"{name:<14} {options.runs} runs {seconds:.3f} s{verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
