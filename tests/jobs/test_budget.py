"""Budgets: what a study has spent, what runs reserve, what is held, and how it goes on; by two submitters, too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs import gpu_hours
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.slurm.cluster import add
from mimbench.jobs.studies import submit as submitting
from mimbench.jobs.studies.budget import Budget, Entry, Gate, account, recorded
from mimbench.jobs.studies.plan import plan, render
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.studies.sweep import Sweep

if TYPE_CHECKING:
    from tests.jobs.conftest import Bench

ROOT = Path(__file__).parents[2]
STUDY = Study("mine", [Run("cls/knn_handwritten", (f"seed={seed}",), label=f"knn {seed}") for seed in range(6)])


def mimbench(*arguments: str) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, list(arguments), prog_name="mimbench")


def _attempt(run: RunDir, state: str, hours: float, gpus: int, **more: Any) -> None:
    """A start on another machine that took some hours and ended, or that runs since then."""
    now = time.time()
    about = {"state": state, "started": now - 3600 * hours, "host": "elsewhere", "pid": 1, "process_started": 0.0}
    file = run.path / "attempts" / "1.json"
    file.parent.mkdir(exist_ok=True)
    ended = {} if state == "running" else {"ended": now}
    file.write_text(json.dumps({**about, "gpus": gpus, **ended, **more}))
    if state == "done":
        run.result.write_text(json.dumps({"metrics": {"knn_top1": 50.0}}))


@pytest.fixture
def runs() -> list[RunDir]:
    """The runs of the study, of which the first took an hour."""
    return list(STUDY.prepare(runs_root()).values())


def _entries(runs: list[RunDir], kind: Any = "GPU") -> list[Entry]:
    return [Entry(run, kind, "cls/knn_handwritten") for run in runs]


def test_spent_reserved_and_predicted_hours_lie_within_the_budget(runs: list[RunDir]) -> None:
    _attempt(runs[0], "done", 2.0, gpus=1)
    _attempt(runs[1], "running", 0.5, gpus=1)
    wanted = [run.path for run in runs[2:]]
    found = account(runs_root(), Budget(gpu=7.0), _entries(runs), wanted)
    assert found.spent.gpu == pytest.approx(2.5, abs=0.01)
    assert found.active == 1
    assert list(found.admitted) == wanted[:1], "2.5 spent, 1.5 to come of the running one, 2 for the next: 6 of 7"
    assert found.reserved.gpu == pytest.approx(3.5, abs=0.01)
    assert re.fullmatch(
        r"held by the budget: about 2 GPU hours, and 1.0\d of 7 are left", next(iter(found.held.values()))
    )
    assert found.needed("GPU") == 12
    assert found.lines("mimbench submit mine") == [
        "budget of 7 GPU hours: 2.50 GPU hours spent, 3.50 reserved by 2 queued and running runs",
        "3 runs are held by the budget: 6 GPU hours",
        "to go on: mimbench submit mine --gpu-hours 12",
    ]
    assert not account(runs_root(), Budget(gpu=12.0), _entries(runs), wanted).held
    assert not account(runs_root(), Budget(cpu=0.0), _entries(runs), wanted).held, "they need no CPU hours"


def test_runs_without_a_gpu_need_no_gpu_hours(runs: list[RunDir]) -> None:
    _attempt(runs[0], "done", 2.0, gpus=0)
    entries, wanted = _entries(runs, "CPU"), [run.path for run in runs[1:]]
    assert not account(runs_root(), Budget(gpu=0.0), entries, wanted).held
    found = account(runs_root(), Budget(gpu=0.0, cpu=6.5), entries, wanted)
    assert (len(found.admitted), len(found.held), found.spent.gpu) == (2, 3, 0.0)
    assert "--cpu-hours 12" in found.lines("mimbench submit mine")[-1]
    assert "--gpu-hours" not in found.lines("mimbench submit mine")[-1]


def test_of_unknown_cost_one_run_goes_first_and_dependents_are_held_along(runs: list[RunDir]) -> None:
    entries, wanted = _entries(runs), [run.path for run in runs]
    found = account(runs_root(), Budget(gpu=5.0), entries, wanted)
    assert list(found.admitted) == wanted[:1]
    assert set(found.held.values()) == {
        "held by the budget: its cost is unknown until another run of unknown cost has ended"
    }
    assert found.lines("mimbench submit mine")[1:] == [
        "5 runs are held by the budget: 5 of unknown cost",
        "to go on: mimbench submit mine again, when a run has ended",
    ]
    _attempt(runs[0], "done", 2.0, gpus=1)
    entries[5] = Entry(runs[5], "GPU", "cls/knn_handwritten", needs=(runs[4].path,))
    found = account(runs_root(), Budget(gpu=8.5), entries, wanted[1:])
    assert list(found.admitted) == wanted[1:4]
    assert found.held[wanted[5]] == "held by the budget: a run it needs is held"


def test_a_budget_stops_a_study_here_and_lets_it_go_on(bench: Bench, runs: list[RunDir]) -> None:
    _attempt(runs[0], "done", 1.0, gpus=0)
    tasks = submitting.local_scheduler(STUDY, runs_root(), 2, budget=Budget(cpu=1.5)).run()
    assert [task.fate for task in tasks] == ["done"] + ["held"] * 5
    assert all(task.is_well for task in tasks)
    assert tasks[1].why == "held by the budget: about 1 CPU hours, and 0.50 of 1.5 are left"
    assert bench.submitted == []
    found = plan(STUDY, runs_root())
    assert {line.why for line in found.of("new")} == {"held by the budget"}
    assert "budget: 1.5 CPU hours; 5 runs are held by the budget: submit with more hours to go on" in render(found)
    text = mimbench("status").stdout
    assert text.count("held by the budget of mine") == 5

    assert [task.fate for task in submitting.local_scheduler(STUDY, runs_root(), 2).run()][1] == "held", (
        "the budget stays"
    )
    tasks = submitting.local_scheduler(STUDY, runs_root(), 2, budget=Budget(cpu=2.5)).run()
    assert [task.fate for task in tasks] == ["done"] * 6
    first, second = sorted((run.attempts()[0] for run in runs[1:]), key=lambda attempt: attempt["started"])[:2]
    assert second["started"] >= first["ended"], "beside the hour spent, one predicted hour fits; then they are cheap"
    assert recorded(runs_root(), "mine") == Budget(cpu=2.5)


def test_a_run_of_unknown_cost_runs_alone_and_then_the_others(bench: Bench) -> None:
    tasks = submitting.local_scheduler(STUDY, runs_root(), 3, budget=Budget(cpu=1.0)).run()
    assert [task.fate for task in tasks] == ["done"] * 6
    attempts = sorted(
        (task.directory.attempts()[0] for task in tasks if task.directory), key=lambda one: one["started"]
    )
    assert attempts[1]["started"] >= attempts[0]["ended"]


HOLDER = """
import sys
from pathlib import Path
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.studies.budget import Budget, Entry, Gate
root, *runs = map(Path, sys.argv[1:])
entries = {run: Entry(RunDir(run), "GPU", "cls/knn_handwritten") for run in runs}
gate = Gate(root, "mine", Budget(gpu=5.0), entries, None)
print(sorted(gate.held([RunDir(run) for run in runs[1:]], slots=1)), flush=True)
sys.stdin.read()
"""


def test_two_submitters_share_a_budget(runs: list[RunDir]) -> None:
    """The other one reserves two of three hours that are left; once it is gone, they are free again."""
    _attempt(runs[0], "done", 2.0, gpus=1)
    paths = [run.path.absolute() for run in runs]
    gate = Gate(
        runs_root(),
        "mine",
        Budget(gpu=5.0),
        dict(zip(paths, _entries(runs), strict=True)),
        None,
    )
    command = [sys.executable, "-c", HOLDER, str(runs_root()), *map(str, paths)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == f"{sorted(paths[2:])}\n"
    assert set(gate.held([runs[2]], slots=1)) == {paths[2]}
    assert gate.held([runs[1]], slots=1) == {}, "the one that the other starts: it runs once, whoever starts it"
    gate.release(runs[1])
    other.kill()
    other.communicate()
    assert gate.held([runs[2]], slots=1) == {}


def test_on_a_cluster_only_what_fits_is_submitted(runs: list[RunDir], tmp_path: Path) -> None:
    add("gpus", ("partition=low", "gpus_per_node=1"))
    Sweep("mine", "cls/knn_handwritten", [[f"seed={seed}"] for seed in range(6)]).keep(runs_root())
    _attempt(runs[0], "done", 2.0, gpus=1)
    shown = mimbench("submit", "mine", "--cluster", "gpus", "--dry-run", "--gpu-hours", "6.5")
    assert shown.exit_code == 0, shown.stderr
    assert "#SBATCH --array=0-1" in shown.stdout
    assert shown.stderr.splitlines()[-1] == "to go on: mimbench submit mine --cluster gpus --gpu-hours 12"
    told = json.loads(
        mimbench("submit", "mine", "--cluster", "gpus", "--dry-run", "--json", "--gpu-hours", "6.5").stdout
    )
    assert (told["budget"]["gpu_hours"], len(told["budget"]["held"])) == (6.5, 3)
    assert recorded(runs_root(), "mine") == Budget(), "shown only"

    values = "seed=0..5"
    assert mimbench("sweep", "cls/knn_handwritten", values, "--name", "mine", "--gpu-hours", "4.5").exit_code == 0
    shown = mimbench("submit", "mine", "--cluster", "gpus", "--dry-run")
    assert "4 runs are held by the budget" in shown.stderr, "the sweep's budget holds"
    assert mimbench("submit", "mine", "--cluster", "gpus", "--dry-run", "--gpu-hours", "inf").stderr == ""
    for wrong in ("-1", "nan"):
        done = mimbench("submit", "mine", "--gpu-hours", wrong)
        assert (done.exit_code, "must be at least 0" in done.stderr) == (1, True)
    (runs_root() / ".mimbench" / "budgets" / "mine.json").write_text("{")
    done = mimbench("submit", "mine", "--cluster", "gpus", "--dry-run")
    assert (done.exit_code, "remove it and submit again with --gpu-hours N" in done.stderr) == (1, True)


def test_runs_stopped_at_a_rung_are_no_hours_to_come(stopped_sweep: Callable[[], tuple[Study, list[RunDir]]]) -> None:
    """Nine epochs, rungs after 1 and 3: on average a run trains 1 + 2/3 + 6/9 epochs."""
    study, runs = stopped_sweep()
    found = plan(study, runs_root())
    assert found.counts == {"new": 1, "stopped": 2}
    assert [line.forecast is None for line in found.lines] == [True, True, False]
    forecast = found.lines[2].forecast
    assert forecast is not None
    assert (forecast.unit, forecast.source) == ("GPU", "2 stopped runs of this recipe")
    assert forecast.hours == pytest.approx(0.5 * (1 + 2 / 3 + 6 / 9), abs=0.01), "half an hour for an epoch"
    assert "number 2 of 2" in render(found)
    [left] = [one.left for one in gpu_hours.spent(runs_root()) if one.state == "new"]
    assert left == forecast
    assert [one.left.hours for one in gpu_hours.spent(runs_root()) if one.state == "stopped" and one.left] == [0.0, 0.0]
    told = json.loads(mimbench("cost", "--json").stdout)
    assert told["left"] == pytest.approx(forecast.hours)
    done = mimbench("retry", runs[0].path.name)
    assert f"not started: {runs[0].path} is stopped: stopped early after 1 epochs" in done.stderr
    assert account(runs_root(), Budget(gpu=2.1), _finetune(runs), [runs[2].path], study.rungs).held
    assert not account(runs_root(), Budget(gpu=2.2), _finetune(runs), [runs[2].path], study.rungs).held


def _finetune(runs: list[RunDir]) -> list[Entry]:
    return [Entry(run, "GPU", "cls/finetune_handwritten") for run in runs]


@pytest.fixture
def stopped_sweep() -> Callable[[], tuple[Study, list[RunDir]]]:
    """Make a sweep of three fine-tunings of which two stopped after an epoch, which took half an hour."""

    def make() -> tuple[Study, list[RunDir]]:
        rungs = Rungs("s", "finetune_top1", "higher", (1, 3), 3)
        made = [Run("cls/finetune_handwritten", ("epochs=9", f"seed={seed}"), label=str(seed)) for seed in range(3)]
        study = Study("s", made, rungs)
        runs = list(study.prepare(runs_root()).values())
        for number, run in enumerate(runs[:2], 1):
            why = f"stopped early after 1 epochs: finetune_top1 5 is number {number} of {number} runs so far"
            _attempt(run, "stopped", 0.5, 1, why=why)
            run.metrics.write_text(json.dumps({"step": 9, "epoch": 1.0, "lr": 0.1, "seconds": 1700.0}) + "\n")
            folder = runs_root() / ".mimbench" / "rungs" / "s" / "1"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"cls+{run.path.name}.json").write_text(json.dumps({"value": 5.0}))
        return study, runs

    return make
