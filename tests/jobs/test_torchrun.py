"""One machine with several processes for one run: torchrun by hand, `run --gpus`, `submit --cluster local --gpus`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.jobs.local.torchrun import command, must_be_here

STUDY = """
from mimbench import Run, Study
study = Study("two", [Run("cls/knn_handwritten", ("k=10", "neighbours=10", "compute.workers=0"))])
"""


def test_the_line_in_the_docs_is_the_line_that_is_run() -> None:
    line = "torchrun --standalone --nproc-per-node 8 -m mimbench run"
    words = command(Path("runs/x"), 8)
    assert words[1:] == [
        "-m",
        "mimbench.jobs.local.torchrun",
        "--standalone",
        "--nproc-per-node=8",
        "-m",
        "mimbench",
        "run",
        "runs/x",
    ]
    assert line in (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    with pytest.raises(ValueError, match="--gpus 8 exceeds the 2 GPUs"):
        must_be_here(8, ["0", "1"])
    must_be_here(8, [])


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(tmp_path / "digits"))
    make_handwritten(tmp_path / "digits", sizes=Sizes(100, 40, coco_train=8, coco_val=8))
    (tmp_path / "two.py").write_text(STUDY)
    words = (sys.executable, "-m", "mimbench", "submit", "two.py", "--cluster", "local", "--gpus", "2")
    outside = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(words, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = (tmp_path / "runs").glob("cls/*/result.json")
    [attempt] = [json.loads(each.read_text()) for each in (file.parent / "attempts").glob("*.json")]
    assert (attempt["state"], attempt["processes"], attempt["gpus"]) == ("done", 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("sys.exit('error: the reason' if os.environ['RANK'] == '1' else None)", 1, "error: the reason\n"),
        (
            "os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)",
            128 + 9,
            "error: process 1 of the run was ended by SIGKILL, as the system does when memory runs out\n",
        ),
    ],
    ids=["fails", "killed"],
)
def test_a_failure_is_said_once_and_without_the_launchers_traceback(
    tmp_path: Path, work: str, code: int, said: str
) -> None:
    (tmp_path / "work.py").write_text(f"import os, sys\n{work}\n")
    module, *arguments = command(tmp_path, 2)[2:5]
    words = [sys.executable, "-m", module, *arguments, "work.py"]
    outside = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    outside["OMP_NUM_THREADS"] = "1"  # else torchrun says that it chooses
    done = subprocess.run(words, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
