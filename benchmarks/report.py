"""The report of many runs: its size, how long it takes to write, and how soon Chromium shows it.

    python benchmarks/report.py [--runs 500] [--repeats 3] [--keep report.html]

A sweep of fine-tunings of which two thirds stopped early at rungs, each with 400 lines of metrics, and a picture of 160
kB for every fifth run. The page is opened in a headless Chromium with an empty cache; what counts is the time from the
request to the end of loading and of two frames after it. Beside it, as the limit, an empty page.

Floor: 500 runs in 3 s and 20 MB. Status 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.studies.study_registry import add_members
from mimbench.jobs.studies.sweep import Sweep
from mimbench.jobs.tables.report import write_report

ROOT = Path(__file__).parent.parent
SECONDS, MEGABYTES = 3.0, 20.0
PICTURE = 160_000  # bytes
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
RULE = Rungs("many", "finetune_top1", "higher", (1, 3), 3)


def make(root: Path, count: int) -> None:
    """The sweep's runs, as they would be after it."""
    from mimbench.cls.recipes.published import finetune_handwritten
    from tests.jobs.runs import Runs

    runs, made = Runs(root), dict[RunDir, str]()
    usual: Any = finetune_handwritten()
    rates = [10 ** (-4 + 3 * index / (count // 2)) for index in range((count + 1) // 2)]
    values = [(f"base_lr={rate:.5g}", f"layer_decay={decay}") for rate in rates for decay in (0.65, 0.75)][:count]
    for index, own in enumerate(values):
        settings = {key: float(value) for key, value in (text.split("=") for text in own)}
        run = runs.new("cls/finetune_handwritten", replace(usual, epochs=9, **settings))
        made[run] = " ".join(own)
        _become(runs, run, index)
    Sweep("many", "cls/finetune_handwritten", [list(own) for own in values], rungs=RULE.__dict__).keep(root)
    add_members(root, "many", made)


def _become(runs: object, run: RunDir, index: int) -> None:
    """Finished for every third run, else stopped at the first or second rung."""
    from tests.jobs.runs import Runs

    assert isinstance(runs, Runs)
    RULE.write(run.path)
    score, end = 50 + 40 * ((index * 37) % 100) / 100, (9, 1, 3)[index % 3]
    lines = [
        {"step": n, "epoch": end * n / 400, "loss": 300 / (n + 99), "grad_norm": 1.0 + n % 7} for n in range(1, 400)
    ]
    runs.log_metrics(run, [*lines, {"step": 400, "epoch": float(end), "finetune_top1": score}])
    if end == 9:
        runs.finish(run, {"finetune_top1": score})
    else:
        write_json(
            runs.root / ".mimbench" / "rungs" / "many" / str(end) / f"cls+{run.path.name}.json", {"value": score}
        )
        number = run.begin_attempt()
        run.end_attempt(
            number, "stopped", f"stopped early after {end} epochs: finetune_top1 {score:.4g} is number 9 of 9"
        )
    if index % 5 == 0:
        run.plots.mkdir()
        (run.plots / "confusion.png").write_bytes(_noise(PICTURE))


def _noise(size: int) -> bytes:
    """A PNG of about that many bytes."""
    import io

    from PIL import Image

    side, out = round((size / 3) ** 0.5), io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(out, "png")
    return out.getvalue()


def opened(file: Path, home: Path, repeats: int) -> float:
    """The least seconds until Chromium has loaded and drawn a page."""
    from tests.jobs.browser import Browser

    best = float("inf")
    for turn in range(repeats):
        place = home / str(turn)
        place.mkdir(parents=True)
        with Browser(place) as browser:
            page = browser.open(file)
            best = min(best, page.value(FRAMES) / 1000)
            assert page.complaints == []
    return best


def main() -> int:
    """Measure, print, and say by the exit status whether the floors hold."""
    parser = argparse.ArgumentParser(description="The size of a report of many runs, and how soon it opens.")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="write the report to this file, to look at it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # tests is no installed package
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        make(scratch / "runs", options.runs)
        file, began = (options.keep or scratch / "report.html").absolute(), time.perf_counter()
        write_report(scratch / "runs", file)
        written = time.perf_counter() - began
        empty = scratch / "empty.html"
        empty.write_text("<!doctype html><title>empty</title>")
        size = file.stat().st_size / 1e6
        took = {
            name: opened(page, scratch / name, options.repeats) for name, page in (("report", file), ("empty", empty))
        }
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    failed = took["report"] > SECONDS or size > MEGABYTES
    found = {
        "runs": options.runs,
        "megabytes": size,
        "write": written,
        "memory": memory,
        "open": took,
        "failed": failed,
    }
    verdict = "BELOW THE FLOOR" if failed else "ok"
    text = (
        f"report of {options.runs} runs: {size:.1f} MB (at most {MEGABYTES:.0f}), written in {written:.1f} s with "
        f"{memory:.0f} MiB, open in {took['report']:.2f} s (at most {SECONDS:.0f}; an empty page {took['empty']:.2f}): "
        f"{verdict}"
    )
    print(json.dumps(found, indent=2) if options.json else text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
