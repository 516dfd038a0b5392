"""The cores of a process: control groups, SLURM, torchrun and studies on this machine, and the loading processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimbench.engine.run.cores import available_cores, cgroup_cores, cores_of_process, loading_processes

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "LOCAL_WORLD_SIZE": "4"}


def _written(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_version_2_of_control_groups_counts_the_tightest_group_around(tmp_path: Path) -> None:
    _written(tmp_path, own="0::/kubepods/pod7/box")
    assert cgroup_cores(tmp_path, tmp_path / "own") is None, "no files at all"
    _written(tmp_path / "kubepods" / "pod7" / "box", cpu__max="max 100000")
    assert cgroup_cores(tmp_path, tmp_path / "own") is None
    _written(tmp_path / "kubepods", cpu__max="350000 100000")
    _written(tmp_path / "kubepods" / "pod7", cpu__max="800000 100000")
    assert cgroup_cores(tmp_path, tmp_path / "own") == 3.5


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    _written(tmp_path, own="9:memory:/m\n4:cpu,cpuacct:/docker/box\n1:name=systemd:/x")
    _written(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroup_cores(tmp_path, tmp_path / "own") is None, "-1 is no limit"
    _written(tmp_path / "cpu,cpuacct" / "docker" / "box", cpu__cfs_quota_us="150000", cpu__cfs_period_us="50000")
    assert cgroup_cores(tmp_path, tmp_path / "own") == 3


def test_this_process_may_use_what_it_is_bound_to() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("given", "available", "cores"),
    [
        ({}, 12, 12),
        ({"LOCAL_WORLD_SIZE": "8"}, 96, 12),  # torchrun
        ({"LOCAL_WORLD_SIZE": "8"}, 4, 1),
        ({"MIMBENCH_CORES": "12"}, 96, 12),  # a slot of a study on this machine
        ({"MIMBENCH_CORES": "12", "LOCAL_WORLD_SIZE": "4"}, 96, 3),
        ({**STEP, "SLURM_CPUS_PER_TASK": "10"}, 10, 10),  # srun bound each process
        ({**STEP, "SLURM_CPUS_PER_TASK": "10"}, 40, 10),  # srun bound none of them
        ({**STEP, "SLURM_CPUS_PER_TASK": "10"}, 1, 1),  # srun bound each to one core, against the request
        (
            {"SLURM_JOB_ID": "7", "SLURM_TASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "64", "LOCAL_WORLD_SIZE": "8"},
            64,
            8,
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "16", "LOCAL_WORLD_SIZE": "2"}, 128, 8),
        ({"SLURM_JOB_ID": "7"}, 6, 6),
        ({"MIMBENCH_CORES": "none", "LOCAL_WORLD_SIZE": ""}, 6, 6),
    ],
)
def test_processes_of_a_node_share_its_cores(given: dict[str, str], available: int, cores: int) -> None:
    assert cores_of_process(given, available) == cores


@pytest.mark.parametrize(
    ("cores", "gpu", "samples", "processes"),
    [
        (12, True, 1_281_167, 11),  # cpus_per_task=12
        (8, True, None, 7),
        (128, True, None, 16),
        (2, True, None, 2),
        (2, False, None, 2),  # as the demo always had
        (1, True, None, 1),
        (1, False, 10, 1),
        (8, False, None, 2),
        (32, False, None, 8),
        (64, True, 100, 2),  # a tiny data set
        (64, True, 2_001, 5),
    ],
)
def test_loading_processes_fit_the_cores(cores: int, gpu: bool, samples: int | None, processes: int) -> None:
    assert loading_processes(cores, gpu, samples) == processes
