"""What the tests start here ends with them, however they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import missing, wait_for

pytestmark = pytest.mark.xdist_group("slurm")


def test_a_session_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    place, root = tmp_path / "slurm", Path(__file__).parents[2]
    ours = {**os.environ, "PYTHONPATH": str(root)}
    job = ["sbatch", "-W", "-o", str(tmp_path / "out"), "--wrap", "srun sleep 1000"]
    session = subprocess.Popen([sys.executable, "-m", "tests.slurm.cluster", place, "--", *job], cwd=root, env=ours)
    try:
        wait_for(lambda: any(name.endswith("/sleep 1000") for name in _processes(place)), 120, "a job")
    finally:
        session.kill()
        session.wait()
    wait_for(lambda: not _processes(place), 60, "an end to all daemons and jobs")


def _processes(place: Path) -> list[str]:
    """The command lines of processes that belong to the cluster at `place`."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if str(place) in command or process.environ().get("SLURM_CONF") == str(place / "slurm.conf"):
                found.append(command)
        except psutil.Error:
            continue
    return found
