"""A run killed by SIGKILL at any moment and started again ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimbench.engine.data.batches import _end_if_orphan
from tests.kills import forked

PROGRAM = Path(__file__).with_name("killed_run.py")
ROOT = PROGRAM.parent.parent.parent

OPTIONS = {
    "plain": [],
    "workers, accumulation, average": ["--workers", "2", "--accumulate", "2", "--ema", "0.9"],
    "half precision": ["--precision", "fp16", "--ema", "0.5"],
    "bfloat16": ["--precision", "bf16", "--workers", "1"],
}


@pytest.mark.parametrize("name", ["plain", "workers, accumulation, average"])
def test_killed_at_any_moment(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["half precision", "bfloat16"])
def test_killed_at_any_moment_in_lower_precision(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path)


def _check(name: str, directory: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), str(directory), *OPTIONS[name]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout)
    whole = outcomes.pop("never")
    assert whole["kills"] == 0
    assert len(outcomes) == 12
    assert outcomes["at random"]["kills"] >= 2
    for moment, outcome in outcomes.items():
        assert outcome["kills"] >= 1, moment
        assert outcome["digest"] == whole["digest"], f"killed {moment}: other weights"
        assert outcome["lines"] == whole["lines"], f"killed {moment}: other metrics"
        assert outcome["checkpoints"] == whole["checkpoints"], moment
        assert outcome["stale"] == [], moment


@pytest.mark.parametrize(("lost", "code"), [(False, 0), (True, 1)])
def test_a_loading_process_ends_if_its_parent_was_killed_before_it_began(lost: bool, code: int) -> None:
    parent = os.getpid() + lost
    process = forked(lambda: _end_if_orphan(parent, 0))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
