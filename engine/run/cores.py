"""Counts CPU cores: those this process may use, and the data loading processes that fit on them.

    available_cores()       what this process may use: its affinity and the quota of its control group
    cores_of_process()      its share: a node's cores are divided by the processes of the run on that node
    loading_processes(...)  `compute.workers=auto`: how many processes load data for this one

Imports no torch, so that `doctor` and submissions give the same answers as a run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Workers = int | Literal["auto"]  # `compute.workers`

MOST = 16  # loading processes: each keeps two batches in memory
FEW = 2  # loading processes that are always allowed, and enough while the model computes on the CPU
SAMPLES = 500  # samples for each further process: more processes would start for nothing
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return the number of CPU cores this process may use, at least 1: its affinity, limited by a control group."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cgroup_cores(groups: Path = GROUPS, own: Path = OWN_GROUP) -> float | None:
    """Return the processor time that control groups (version 1 or 2) allow, in cores; None without a limit.

    The tightest limit counts, from this process's own group up to the root.
    """
    limits = []
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            limits += [_quota_2(folder) for folder in _up(groups, path)]
        elif "cpu" in controllers.split(","):
            limits += [_quota_1(folder) for name in (controllers, "cpu") for folder in _up(groups / name, path)]
    return min((limit for limit in limits if limit), default=None)


def _up(root: Path, path: str) -> list[Path]:
    """Return the folder of a group and those of all groups that contain it."""
    inner = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*inner[:depth]) for depth in range(len(inner) + 1)]


def _quota_2(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_1(folder: Path) -> float | None:
    quota, period = (_lines(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _ratio(quota[0], period[0]) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None for "max", and for -1, which means no limit."""
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def cores_of_process(given: Mapping[str, str] | None = None, available: int | None = None) -> int:
    """Return the cores of this process of the run, at least 1.

    The run's cores on this node are those that SLURM gave (`SLURM_CPUS_PER_TASK` for each task, else
    `SLURM_CPUS_ON_NODE`) or all, at most those that a study on this machine gave the run (`MIMBENCH_CORES`). Its
    processes on this node (`LOCAL_WORLD_SIZE`) share them. A process that is bound to fewer cores has those.

    Args:
        given: environment variables; None: this process's.
        available: cores that this process may use; None: `available_cores()`.
    """
    given = os.environ if given is None else given
    available = available_cores() if available is None else available
    here = max(1, _number(given, "LOCAL_WORLD_SIZE") or 1)
    node = available
    if (each := _number(given, "SLURM_CPUS_PER_TASK")) is not None:
        node = each * _tasks_here(given)
    elif "SLURM_JOB_ID" in given:
        node = _number(given, "SLURM_CPUS_ON_NODE") or available
    node = min(node, _number(given, "MIMBENCH_CORES") or node)
    return max(1, min(available, node // here))


def _tasks_here(given: Mapping[str, str]) -> int:
    """Return the number of SLURM's tasks on a node: 4 for "4(x2)", and 1 outside of an allocation."""
    told = given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE") or ""
    text = told.split(",")[0].partition("(")[0]
    return int(text) if text.isdecimal() else 1


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def loading_processes(cores: int, gpu: bool, samples: int | None = None) -> int:
    """Return how many processes load data for a process with `cores` cores: 1 to `MOST`.

    With a GPU all cores but one load, because the process itself keeps one busy. Without, the model computes on the
    cores, and a quarter loads. Two processes are allowed even on two cores; a data set of few `samples` gets no more.
    """
    wanted = cores - 1 if gpu else cores // 4
    fitting = MOST if samples is None else max(FEW, -(-samples // SAMPLES))
    return max(1, min(max(wanted, FEW), cores, MOST, fitting))
