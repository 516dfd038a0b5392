"""`mimbench doctor`: check this machine, report what is missing and how to fix it.

With `--data NAME` it also times loading and a training step for some seconds, and reports which of them is the
bottleneck.

Each finding is `ok`, `note` (slow, or missing and needed by some commands only) or `problem`
(runs will fail). The exit code is 1 when there is a problem.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from packaging.requirements import Requirement

from mimbench.engine.data.datasets import HANDWRITTEN, cache_directory, listing
from mimbench.engine.run.bar import working
from mimbench.engine.run.cores import available_cores, cores_of_process, loading_processes
from mimbench.engine.run.task import Finding as Check
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.runs.tasks import task_of, tasks

GIB = 2**30
LITTLE_DISK = 5 * GIB
LITTLE_SHARED = 1 * GIB


def examine() -> Iterator[Check]:
    """Yield all checks, the most important first."""
    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield from _packages()
    yield _opencv()
    yield from _device()
    yield _threads()
    yield from _disks()
    yield _shared_memory()
    yield from _data_sets()
    yield from _programs()


def pace(data: str, recipe: str, overrides: Sequence[str]) -> Check:
    """Return whether loading the images of `data` is as fast as the pretraining step of `recipe`, each timed alone.

    Raises:
        FileNotFoundError: if the data set does not exist.
        ValueError: if the recipe does not exist, or is not a pretraining.
    """
    from mimbench.jobs.runs.store import resolve

    chosen, config = resolve(recipe, [f"data={data}", *overrides])
    measure = task_of(chosen.stage).throughput
    if measure is None:
        timed = " or ".join(f"{task.name}/" for task in tasks().values() if task.throughput)
        raise ValueError(
            f"--recipe {recipe} cannot be timed; choose a recipe that begins with {timed} (`mimbench recipes`)"
        )
    with working(f"timing {data} and {recipe}"):
        found = measure(config)
    sides = (
        f"{found.workers} loading processes load {_rate(found.loader)} img/s; a step of {recipe} "
        f"processes {_rate(found.step)} img/s on {found.device} (batch {found.batch})"
    )
    if not found.starved:
        ahead = found.loader / found.step
        return Check(
            f"input {data}", "ok", f"{sides}: the model is the bottleneck, loading is {ahead:.1f} times as fast"
        )
    cores = cores_of_process()
    fitted = loading_processes(cores, found.device.type == "cuda")
    more = f"use compute.workers=auto ({fitted} for {cores} cores here), or run " if found.workers < fitted else ""
    remedy = f"{more}`mimbench data shrink {data} DIR`, whose images load four times as fast"
    return Check(f"input {data}", "note", f"{sides}: loading is the bottleneck", remedy)


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"


def show(as_json: bool, timed: Check | None = None) -> int:
    """Print all findings, including `timed`; return 1 if there is a problem."""
    with working("checking this machine"):
        checks = list(examine())
    return show_checks([*checks, *([timed] if timed else [])], as_json)


def show_checks(checks: Sequence[Check], as_json: bool) -> int:
    """Print findings; return 1 if there is a problem."""
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            mark = {"ok": "  ", "note": "- ", "problem": "! "}[check.verdict]
            print(f"{mark}{check.what:<{width}}  {check.found}")
            if check.remedy:
                print(f"  {'':<{width}}  -> {check.remedy}")
    return 1 if any(check.verdict == "problem" for check in checks) else 0


def _packages() -> Iterator[Check]:
    """Check that the packages mimbench requires are installed in supported versions."""
    try:
        required = importlib.metadata.requires("mimbench") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "note", "mimbench is not installed, only imported from its folder", "pip install -e .")
        return
    found, wrong = [], []
    for text in required:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        found.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} is {version}, but must be {wanted.specifier}")
    yield Check("packages", "ok", ", ".join(found))
    if wrong:
        yield Check("packages", "problem", "; ".join(wrong), "pip install -r requirements.txt")


def _opencv() -> Check:
    """Check OpenCV, which a run imports with mmengine; servers and containers often lack its system libraries."""
    try:
        import cv2
    except ImportError as error:
        remedy = (
            "apt-get install libgl1 libglib2.0-0; without root: pip uninstall opencv-python, then "
            "pip install opencv-python-headless"
        )
        return Check("opencv", "problem", f"cannot be imported: {error}", remedy)
    return Check("opencv", "ok", str(cv2.__version__))


def _device() -> Iterator[Check]:
    """Check the device and the precision that torch uses."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "problem", f"cannot be imported: {error}", "pip install -r requirements.txt")
        return
    from mimbench.engine.run.config import Compute
    from mimbench.engine.run.process import autocast_dtype, device_name

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in gpus or [torch.device("cpu")]:
        dtype = autocast_dtype(Compute(), device)
        precision = str(dtype).removeprefix("torch.") if dtype else "float32"
        memory = f", {torch.cuda.get_device_properties(device).total_memory / GIB:.0f} GiB" if gpus else ""
        yield Check(
            f"device {device}", "ok", f"{device_name(device)}{memory}; compute.precision=auto means {precision}"
        )
    if not gpus:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        driver = shutil.which("nvidia-smi") is not None
        remedy = "a driver is installed but torch cannot use it: compare their CUDA versions" if driver else ""
        yield Check("gpu", "note", f"none; {built}, cpu capability {torch.backends.cpu.get_cpu_capability()}", remedy)


def _threads() -> Check:
    chosen = os.environ.get("OMP_NUM_THREADS")
    return Check(
        "cpu", "ok", f"{available_cores()} cores" + (f"; OMP_NUM_THREADS={chosen} limits each run" if chosen else "")
    )


def _disks() -> Iterator[Check]:
    """Check free space and write access where runs and generated data go."""
    for what, path in (("runs", runs_root()), ("cache", cache_directory())):
        there = _existing(path.absolute())
        if not os.access(there, os.W_OK):
            yield Check(what, "problem", f"{there} is not writable", "set MIMBENCH_RUNS or MIMBENCH_HOME")
            continue
        free = shutil.disk_usage(there).free
        little = free < LITTLE_DISK
        remedy = (
            "a checkpoint of ViT-B takes 1 GiB, of ViT-H 8 GiB: free disk space, or set MIMBENCH_RUNS" if little else ""
        )
        yield Check(what, "note" if little else "ok", f"{path.absolute()}: {free / GIB:.1f} GiB free", remedy)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _shared_memory() -> Check:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Check("shared memory", "ok", "not a separate file system on this machine")
    size = shutil.disk_usage(shm).total
    if size < LITTLE_SHARED:
        remedy = "data loading processes will fail: use docker run --shm-size=8g, or compute.workers=0"
        return Check("shared memory", "note", f"{size / GIB:.2f} GiB", remedy)
    return Check("shared memory", "ok", f"{size / GIB:.1f} GiB")


def _data_sets() -> Iterator[Check]:
    for name, path in listing().items():
        if path.is_dir():
            yield Check(f"data {name}", "ok", str(path))
        elif name == HANDWRITTEN:
            yield Check(f"data {name}", "ok", f"{path} (written when first used)")
        else:
            yield Check(f"data {name}", "note", f"{path} does not exist", f"mimbench data add {name} PATH")


def _programs() -> Iterator[Check]:
    """Check programs that only some commands need."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    yield Check(
        "browser", "ok" if browser else "note", browser or "no chromium found: one test of the report will be skipped"
    )
    yield _slurm()
    for task in tasks().values():
        yield from task.doctor() if task.doctor else ()


def _slurm() -> Check:
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return Check("slurm", "note", "not on this machine")
    done = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=False)
    said = (done.stdout or done.stderr).strip().partition("\n")[0]
    if done.returncode:
        return Check(
            "slurm", "note", f"installed, but it reports: {said}", "set SLURM_CONF, or run this on a login node"
        )
    return Check("slurm", "ok", said)
