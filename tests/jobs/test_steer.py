"""Stopping runs, starting them again, and clearing away what no number needs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs import control as steer
from mimbench.jobs.runs import gc
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies.study import Run
from mimbench.jobs.studies.study_registry import add_members
from mimbench.jobs.studies.submit import start_again
from tests.jobs.mine import mimbench

if TYPE_CHECKING:
    from tests.jobs.conftest import Bench


def test_a_run_of_this_machine_is_stopped_in_order(bench: Bench) -> None:
    bench.behaviours = {7: "sleeps"}
    run = Run("cls/knn_handwritten", ("seed=7",)).directory(runs_root())
    process = bench.submit(run, None, 1)
    deadline = time.monotonic() + 60
    while run.state() != "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    done = mimbench("cancel", run.path.name)
    assert f"cancelled: {run.path}" in done.stderr
    process.process.wait(30)
    assert run.state() == "interrupted"
    assert "nothing to cancel" in mimbench("cancel", run.path.name).stderr
    bench.behaviours = {}
    assert mimbench("retry", run.path.name).exit_code == 0
    assert run.state() == "done"


def test_a_run_of_another_machine_is_not_reached(made: list[RunDir]) -> None:
    number = made[3].begin_attempt()
    attempt = made[3].path / "attempts" / f"{number}.json"
    attempt.write_text(json.dumps({**json.loads(attempt.read_text()), "host": "elsewhere", "pid": os.getpid()}))
    assert (
        f"is running as process {os.getpid()} on elsewhere; cancel it on that machine"
        in mimbench("cancel", "knn 2").stderr
    )


def test_many_at_once_only_after_a_yes(made: list[RunDir], bench: Bench) -> None:
    processes = []
    bench.behaviours = {0: "sleeps", 1: "sleeps"}
    for seed in (0, 1):
        run = Run("cls/knn_handwritten", (f"seed={seed}", "k=10")).directory(runs_root())
        add_members(runs_root(), "two", {run: str(seed)})
        processes.append((run, bench.submit(run, None, 1)))
    deadline = time.monotonic() + 60
    while any(run.state() != "running" for run, _ in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "cancel 2 runs? Confirm with --yes" in mimbench("cancel", "--study", "two").stderr
    assert [run.state() for run, _ in processes] == ["running"] * 2
    assert mimbench("cancel", "--study", "two", "--yes").exit_code == 0
    for run, process in processes:
        process.process.wait(30)
        assert run.state() == "interrupted"


def test_retrying_leaves_alone_what_is_done(made: list[RunDir], bench: Bench) -> None:
    assert mimbench("retry", "--study", "mine").exit_code == 0
    assert [run.state() for run in made] == ["done", "done", "done", "new"]
    assert [seed for seed, *_ in bench.submitted] == [1]
    done = mimbench("retry", made[1].path.name)
    assert "not started" in done.stderr
    assert mimbench("retry", made[1].path.name, "--anew").exit_code == 0
    assert (made[1].path / "old-1" / "result.json").exists(), "what it had made lies aside"
    assert made[1].state() == "done"
    assert [seed for seed, *_ in bench.submitted] == [1, 0]


def test_begun_anew_a_run_finds_nothing_of_before(made: list[RunDir]) -> None:
    run = made[1]
    for name in ("detector.pth", "predictions.json", "categories.json", "predictions.safetensors", "log.txt"):
        (run.path / name).write_text("before")
    for folder in ("search", "detectron2", "weight_maps"):
        (run.path / folder).mkdir()
    aside = steer.renew(run)
    assert {path.name for path in run.path.iterdir()} == {"config.txt", "run.json", "log.txt", "old-1"}
    assert {"result.json", "attempts", "detector.pth", "search", "detectron2"} <= {
        path.name for path in aside.iterdir()
    }
    assert steer.renew(run).name == "old-2"
    assert (aside / "result.json").exists()


def test_a_damaged_run_is_named_and_stands_in_nobodys_way(made: list[RunDir], bench: Bench) -> None:
    (made[1].path / "attempts" / "1.json").write_text("")
    made[1].result.unlink()
    assert "nothing to cancel" in mimbench("cancel", "--study", "mine").stderr
    done = mimbench("retry", "--study", "mine")
    assert (done.exit_code, made[2].state()) == (0, "done")
    assert f"not started: {made[1].path} has a damaged attempts/1.json: remove it" in done.stderr
    again = mimbench("retry", "--study", "mine")
    assert (again.exit_code, "nothing to retry" in again.stderr) == (0, True)
    made[0].result.write_text("")
    (made[0].checkpoints).mkdir()
    (made[0].checkpoints / "step-00000100.pt").write_bytes(b"x" * 5000)
    assert gc.waste(runs_root()) == [], "without a result a checkpoint is not waste"


def test_a_study_that_nobody_asked_for_is_no_empty_one(made: list[RunDir]) -> None:
    for command in ("retry", "cancel", "status", "cost"):
        done = mimbench(command, "--study", "mien")
        assert (done.exit_code, "study 'mien' has no runs" in done.stderr) == (1, True), command


def test_what_was_cancelled_on_a_cluster_is_not_started_here(made: list[RunDir]) -> None:
    run = Run("cls/knn_handwritten", ("seed=99",)).directory(runs_root())
    run.end_attempt(run.begin_attempt(job="12_3", step=0), "interrupted", "cancelled")
    with pytest.raises(ValueError, match="was cancelled on its cluster; `mimbench submit STUDY --cluster NAME`"):
        start_again([run], runs_root(), slots=1)
    assert len(run.attempts()) == 1


def test_pruning_asks_and_says_what_goes(made: list[RunDir], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from mimbench.jobs.studies.study import Run, Study\n"
        "first = Run('pretrain/crossmae_handwritten', label='pretrain')\n"
        "study = Study('mine', [first, Run('cls/knn_handwritten', ('seed=0',), first, 'knn 0')])\n"
    )
    planned = json.loads(mimbench("plan", str(file), "--json").stdout)
    assert planned["counts"] == {"done": 2, "orphaned": 2}
    refused = mimbench("prune", str(file))
    assert (refused.exit_code, "prune 2 runs? Confirm with --yes" in refused.stderr) == (1, True)
    assert mimbench("prune", str(file), "--yes").exit_code == 0
    assert json.loads(mimbench("plan", str(file), "--json").stdout)["counts"] == {"done": 2}
    assert all(run.about.exists() for run in made)


def test_clearing_away_keeps_results_logs_and_encoders(made: list[RunDir]) -> None:
    root = runs_root()
    for run in (made[0], made[2]):
        run.checkpoints.mkdir()
        (run.checkpoints / "step-00000100.pt").write_bytes(b"x" * 5000)
        run.log.write_text("said")
    (root / ".features" / "abc").mkdir(parents=True)
    (root / ".features" / "abc" / "train.safetensors").write_bytes(b"x" * 300)
    (root / ".mimbench" / "code" / "old").mkdir(parents=True)
    (root / ".mimbench" / "code" / "old" / "a.py").write_bytes(b"x" * 70)
    os.utime(root / ".mimbench" / "code" / "old", (0, 0))
    found = {one.kind: one.bytes for one in gc.waste(root)}
    assert found == {"checkpoints": 5000, "features": 300, "snapshots": 70}
    refused = mimbench("gc")
    assert "total 5.2 KiB: 4.9 KiB of checkpoints, 300 B of features, 70 B of snapshots" in refused.stdout
    assert "remove 5.2 KiB? Confirm with --yes" in refused.stderr
    assert len(gc.waste(root)) == 3
    assert "freed 5.2 KiB" in mimbench("gc", "--yes").stderr
    assert gc.waste(root) == []
    assert not made[0].checkpoints.exists()
    assert (made[2].checkpoints / "step-00000100.pt").exists(), "a run that failed goes on from it"
    assert made[0].encoder.exists()
    assert made[0].log.exists()
    assert made[0].result.exists()


def test_features_stay_while_a_run_may_read_them(made: list[RunDir]) -> None:
    (runs_root() / ".features" / "abc").mkdir(parents=True)
    (runs_root() / ".features" / "abc" / "train.safetensors").write_bytes(b"x" * 300)
    number = made[3].begin_attempt()
    assert gc.waste(runs_root()) == []
    made[3].end_attempt(number, "failed")
    assert [one.kind for one in gc.waste(runs_root())] == ["features"]
