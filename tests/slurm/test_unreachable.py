"""A login node whose SLURM does not answer: the real commands, and a controller that nobody has started."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench.jobs.cli.main import app
from mimbench.jobs.slurm import schedulers

STUDY = """
from mimbench import Run, Study
first = Run("pretrain/crossmae_handwritten")
study = Study("small", [first, *(Run("cls/knn_handwritten", (f"seed={seed}",), first) for seed in range(3))])
"""
CONF = """
ClusterName=nobody
SlurmctldHost=localhost
SlurmctldPort={port}
AuthType=auth/none
NodeName=localhost
PartitionName=gpu Nodes=localhost
MessageTimeout=2
"""


def _mimbench(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="mimbench")
    return done.exit_code, done.stdout, done.stderr


def _all(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.name != "submit.lock")


def test_a_study_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("squeue") is None:
        pytest.skip("there is no SLURM here")
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    (tmp_path / "slurm.conf").write_text(CONF.format(port=port))
    (tmp_path / "small.py").write_text(STUDY)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.setenv("MIMBENCH_RUNS", str(root := tmp_path / "runs"))
    monkeypatch.setenv("MIMBENCH_CLUSTERS", str(tmp_path / "clusters"))
    monkeypatch.setattr(schedulers, "BACK_OFF", ())
    _mimbench("cluster", "add", "a100", "partition=gpu", "gpus_per_node=8")
    code, _, said = _mimbench("submit", tmp_path / "small.py", "--cluster", "a100")
    assert code == 1
    assert "Unable to contact slurm controller" in said
    assert "Nothing was submitted or written; try again later" in said
    assert _all(root) == [".mimbench"]
    assert json.loads(_mimbench("plan", tmp_path / "small.py", "--json")[1])["counts"] == {"new": 4}
    assert "no runs under" in _mimbench("status")[2]
