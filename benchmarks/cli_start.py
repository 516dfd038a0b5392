"""How soon `mimbench` answers, against importing the stack that runs use (B22).

    python benchmarks/cli_start.py [--repeats 10] [--json]

Wall time of `mimbench --help`, `mimbench recipes` and `mimbench table` on an empty root, each a fresh process, beside
one that imports torch, torchvision, timm and mmengine as a run does, and beside Python that does nothing, the limit.
Processes take turns, one warm-up each, and the least time counts. The help must be the same text in a process that has
the stack, and none of the commands may load torch.

Floor: --help under 0.25 s. Aim: 0.2 s. Status 1 if the floor does not hold. What `inspect` imports is held by
benchmarks/checkpoint_inspect.py, the start of a run by benchmarks/run_start.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOOR, AIM = 0.25, 0.2  # seconds, of --help
CALL = "import sys; from mimbench.jobs.cli.main import main; sys.argv = ['mimbench', *sys.argv[1:]]; main()"
STACK = "import torch, torchvision, timm.models.vision_transformer, mmengine.runner"
COMMANDS = {
    "mimbench --help": [CALL, "--help"],
    "mimbench recipes": [CALL, "recipes"],
    "mimbench table": [CALL, "table"],
    "importing the stack": [STACK],
    "python alone": ["pass"],
}


def start(code: str, *arguments: str) -> tuple[float, str]:
    """Seconds that a fresh process takes, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def check() -> None:
    """The help is the same with and without the stack, and no command loads torch."""
    plain = start(CALL, "--help")[1]
    assert plain
    assert plain == start(f"{STACK}; {CALL}", "--help")[1], "the help depends on what is imported"
    watched = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {CALL}"
    for name, (code, *arguments) in COMMANDS.items():
        if code == CALL:
            assert start(watched, *arguments)[1].splitlines()[-1] == "False", f"{name} loads torch"


def measure(repeats: int) -> dict[str, float]:
    """The least seconds of each command."""
    best = dict.fromkeys(COMMANDS, float("inf"))
    for turn in range(repeats + 1):
        for name, command in COMMANDS.items():
            if name == "importing the stack" and turn > 3:
                continue  # seconds each
            seconds = start(*command)[0]
            if turn:
                best[name] = min(best[name], seconds)
    return best


def main() -> int:
    """Measure, print, and say by the exit status whether the floor holds."""
    parser = argparse.ArgumentParser(description="How soon mimbench answers (B22).")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        os.environ["MIMBENCH_RUNS"] = empty
        check()
        best = measure(options.repeats)
    ours, stack = best["mimbench --help"], best["importing the stack"]
    failed = ours > FLOOR
    if options.json:
        print(
            json.dumps({"seconds": best, "ratio": stack / ours, "floor": FLOOR, "aim": AIM, "failed": failed}, indent=2)
        )
    else:
        for name, seconds in best.items():
            print(f"{name:<20} {seconds:.3f} s")
        verdict = "missed" if failed else "aim reached" if ours <= AIM else "held"
        print(
            f"B22  --help {ours:.3f} s (floor {FLOOR}, aim {AIM}, limit {best['python alone']:.3f}: {verdict})", end=""
        )
        print(f"  {stack / ours:.1f} times sooner than the stack")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
