"""What opening a checkpoint costs as files grow, against plain torch.load.

    python benchmarks/checkpoint_inspect.py [--sizes S B L H] [--repeats 3] [--folder DIR] [--json]

The files are CrossMAE's training states as its authors save them, decoder, both Adam moments and options included:
.4, 1.5, 4.2 and 8.1 GB for ViT-S/16, B/16, L/16 and H/14. Three sides, each a fresh process, take turns:

    open      open_checkpoint, what every use of a checkpoint begins with; the call alone
    load      torch.load with safe loading and nothing else; the call alone
    inspect   `mimbench inspect FILE --json` as a person calls it, from start to end, imports included

and one that only imports torch, the limit of `inspect`, which may import neither timm nor torchvision. Seconds are the
processor's, on one thread, so that other work on the machine does not count. The least time and the largest peak memory
of the repeats count. The weights that open gives are the same as those of torch.load, by names, shapes and values. (The
script is not called inspect.py because Python would take it for the standard library's module of that name.)

The weights in the files are holes, which take no room on the disk and are read as zeros without it: torch.load is
spared the disk that would dominate its time. A size is left out of the load side if half of the free memory is less.

Floors, at every size: `inspect` within 6 s and 1 GiB; open no slower than load. Aim: `inspect` within 1.3 times the
import of torch alone. That takes 3 s if packages are installed with compiled bytecode, as `make` does, and 7 s without,
when Python compiles a thousand files at each start; the script says so. Ends with status 1 if one does not hold. Linux
only, because it reads /proc.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.recipes.crossmae import (
    crossmae_vitb_800ep,
    crossmae_vith_800ep,
    crossmae_vitl_800ep,
    crossmae_vits_800ep,
)
from mimbench.pretrain.run import build_step

ROOT = Path(__file__).parent.parent
RECIPES = {"S": crossmae_vits_800ep, "B": crossmae_vitb_800ep, "L": crossmae_vitl_800ep, "H": crossmae_vith_800ep}
SECONDS, AIM, MEMORY = 6.0, 1.3, 2**30  # of `inspect`: floor, aim by torch's import, and the floor of its peak
PEAK = "next(int(line.split()[1]) << 10 for line in open('/proc/self/status') if line.startswith('VmHWM'))"
TIMED = f"""
import sys, time, argparse, torch
from mimbench.backbones.checkpoints.opening import open_checkpoint
begun = time.process_time()
with torch.serialization.safe_globals([argparse.Namespace]):
    held = {{call}}
print(time.process_time() - begun, {PEAK})
"""
SIDES = {
    "open": TIMED.format(call="open_checkpoint(sys.argv[1])"),
    "load": TIMED.format(call="torch.load(sys.argv[1], map_location='cpu', weights_only=True)"),
    "inspect": f"""
import atexit, sys, time
atexit.register(lambda: print(f"\\n{{time.process_time()}}", {PEAK}))
from mimbench.jobs.cli.main import main
sys.argv = ["mimbench", "inspect", sys.argv[1], "--json"]
main()
""",
    "import": f"import time, torch\nprint(time.process_time(), {PEAK})",
}


@dataclass
class Cost:
    """Of one side on one file."""

    seconds: float = float("inf")  # the least
    peak: int = 0  # bytes resident, the largest


def training_state(config: Pretrain) -> dict[str, object]:
    """What CrossMAE's authors save, its weights not filled in."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_step(config).method.state_dict().items()}
    model = {key: torch.zeros(shape) for key, shape in shapes.items()}
    moments: dict[int, dict[str, Tensor]] = {
        at: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
        for at, shape in enumerate(shapes.values())
    }
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}
    return {"model": model, "optimizer": optimizer, "epoch": 799, "args": argparse.Namespace(lr=1e-4, epochs=800)}


def write(size: str, folder: Path) -> Path:
    """The training state of ViT-`size`, with holes for weights."""
    path = folder / f"crossmae_vit{size.lower()}.pth"
    torch.serialization.set_crc32_options(False)  # nothing here reads them, and they take longer than the rest
    with torch.serialization.skip_data():
        torch.save(training_state(RECIPES[size]()), path)
    return path


def check(path: Path) -> None:
    """Both ways give the same weights."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        plain = torch.load(path, map_location="cpu", weights_only=True)["model"]
    ours = open_checkpoint(path).weights
    assert list(ours) == list(plain)
    assert all(torch.equal(value, plain[key]) for key, value in ours.items())


def run(side: str, path: Path) -> tuple[float, int]:
    """Seconds and peak memory of one side."""
    command = [sys.executable, "-c", SIDES[side], str(path)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak = done.stdout.splitlines()[-1].split()
    return float(seconds), int(peak)


def free_memory() -> int:
    """Bytes that can be had, what the cache of files holds included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def measure(path: Path, repeats: int) -> dict[str, Cost]:
    """The cost of every side on the file at `path`."""
    sides = [side for side in SIDES if side != "load" or path.stat().st_size < free_memory() / 2]
    costs = {side: Cost() for side in sides}
    for _ in range(repeats):
        for side, cost in costs.items():
            seconds, peak = run(side, path)
            cost.seconds, cost.peak = min(cost.seconds, seconds), max(cost.peak, peak)
    return costs


def faults(costs: dict[str, Cost]) -> list[str]:
    """Which floors do not hold."""
    inspect, load = costs["inspect"], costs.get("load", Cost())
    found = []
    if inspect.seconds > SECONDS:
        found.append(f"inspect takes {inspect.seconds:.1f} s")
    if inspect.peak > MEMORY:
        found.append(f"inspect takes {inspect.peak / 2**20:.0f} MiB")
    if costs["open"].seconds > load.seconds:
        found.append("open is slower than load")
    return found


def line(size: str, path: Path, costs: dict[str, Cost]) -> str:
    """One row of the table."""
    shown = [
        f"{costs[side].seconds:7.2f} s {costs[side].peak / 2**20:6.0f} MiB" if side in costs else f"{'-':>20}"
        for side in SIDES
    ]
    return f"ViT-{size} {path.stat().st_size / 1e9:5.2f} GB " + " ".join(shown)


def main() -> int:
    """Measure, print, and say by the exit status whether the floors hold."""
    parser = argparse.ArgumentParser(description="What opening a checkpoint costs, by its size.")
    parser.add_argument("--sizes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the files are written; they take no room (default: the temporary one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results, failed = {}, []
    if not Path(importlib.util.cache_from_source(str(torch.__file__))).exists():
        print("torch has no compiled bytecode: every side takes 4 s more; install as `make` does", file=sys.stderr)
    if not options.json:
        print(f"{'':14} " + " ".join(f"{side:>20}" for side in SIDES))
    for at, size in enumerate(options.sizes):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = write(size, Path(folder))
            if at == 0:
                check(path)
            costs = measure(path, options.repeats)
            failed += [f"ViT-{size}: {fault}" for fault in faults(costs)]
            results[size] = {side: asdict(cost) for side, cost in costs.items()}
            if not options.json:
                print(line(size, path, costs), flush=True)
    if options.json:
        print(json.dumps({"costs": results, "failed": failed}, indent=2))
    else:
        slowest = max(results.values(), key=lambda cost: cost["inspect"]["seconds"])
        seconds, limit = slowest["inspect"]["seconds"], slowest["import"]["seconds"]
        print("\n".join(failed) or f"the floors hold (inspect: {SECONDS:g} s)")
        print(f"inspect {seconds:.1f} s, {seconds / limit:.2f} times the import of torch (aim {AIM:g})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
