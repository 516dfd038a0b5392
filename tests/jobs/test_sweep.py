"""Sweeps: what values mean, grids and draws, what is kept, and a search by Optuna where that is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.runs.store import config_of, runs_root
from mimbench.jobs.studies.plan import plan
from mimbench.jobs.studies.search import Search, next_round
from mimbench.jobs.studies.study_files import load_study
from mimbench.jobs.studies.study_registry import add_members
from mimbench.jobs.studies.sweep import Axis, Sweep, axis, draws, grid, require_metric, saved, sweep_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lr=1e-4,2e-4", Axis("lr", ("1e-4", "2e-4"))),
        ("data=/a/b", Axis("data", ("/a/b",))),
        ("betas=[0.9,0.95],[0.8,0.99]", Axis("betas", ("[0.9,0.95]", "[0.8,0.99]"))),
        ("seed=0..2", Axis("seed", (), 0, 2, False, True)),
        ("x=0..1:5", Axis("x", ("0", "0.25", "0.5", "0.75", "1"))),
        ("lr=1e-4..1e-2:log3", Axis("lr", ("0.0001", "0.001", "0.01"))),
        ("lr=1e-4..1e-2:log", Axis("lr", (), 1e-4, 1e-2, True, False)),
    ],
)
def test_what_values_mean(text: str, found: Axis) -> None:
    assert axis(text) == found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lr", "'lr' is not of the form key=values"),
        ("lr=", "is not of the form key=values"),
        ("lr=2..1", "a range must rise"),
        ("lr=0..1:log3", "both positive with log"),
        ("lr=a..b", "'a' is not a number"),
        ("lr=1..2:1", "at least 2 values"),
    ],
)
def test_values_that_mean_nothing(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        axis(text)


def test_a_grid_is_every_combination() -> None:
    runs = grid([axis("temperature=0.05,0.1"), axis("seed=0..2"), axis("k=20")])
    assert len(runs) == 6
    assert runs[1] == ("temperature=0.05", "seed=1", "k=20")
    made = sweep_of("cls/knn_handwritten", [axis("temperature=0.05,0.1"), axis("seed=0..2"), axis("k=20")], runs, None)
    assert (made.name, made.fixed) == ("sweep-knn_handwritten-temperature-seed", ["k=20"])
    assert made.study().runs[1].name == "temperature=0.05 seed=1"
    with pytest.raises(ValueError, match=r"as in lr=0.1..1:5"):
        grid([axis("lr=0.1..1")])
    with pytest.raises(ValueError, match=r"lr=0.1..1:log5; or draw with --random N"):
        grid([axis("lr=0.1..1:log")])
    with pytest.raises(ValueError, match="the grid has 1,002,001 runs"):
        grid([axis("a=0..1000"), axis("b=0..1000")])


def test_draws_are_the_same_for_a_seed_and_fill_their_range() -> None:
    axes = [axis("lr=1e-4..1e-2:log"), axis("drop=0.0..0.5"), axis("seed=0..9"), axis("pool=avg,cls")]
    runs = draws(axes, 200, seed=3)
    assert runs == draws(axes, 200, seed=3) != draws(axes, 200, seed=4)
    assert runs[:50] == draws(axes, 50, seed=3)
    values = [dict(text.split("=") for text in run) for run in runs]
    rates = sorted(float(each["lr"]) for each in values)
    assert 1e-4 <= rates[0] < 1.2e-4
    assert 8e-3 < rates[-1] <= 1e-2
    assert math.isclose(rates[100], 1e-3, rel_tol=0.5), "half of them lie below the middle by ratio"
    assert {each["pool"] for each in values} == {"avg", "cls"}
    assert {each["seed"] for each in values} == set("0123456789")
    with pytest.raises(ValueError, match="only 2 different runs were found"):
        draws([axis("pool=avg,cls")], 3, seed=0)


def test_what_was_asked_for_is_kept_and_found_by_name() -> None:
    runs = grid([axis("seed=0..2")])
    sweep_of("cls/knn_handwritten", [axis("seed=0..2")], runs, "mine").keep(runs_root())
    study = load_study("mine", runs_root())
    assert [run.overrides for run in study.runs] == [("seed=0",), ("seed=1",), ("seed=2",)]
    made = study.prepare(runs_root())
    assert config_of(made[study.runs[2]]).seed == 2
    add_members(runs_root(), "mine", {directory: run.name for run, directory in made.items()})
    sweep_of("cls/knn_handwritten", [axis("seed=1..2")], grid([axis("seed=1..2")]), "mine").keep(runs_root())
    assert plan(load_study("mine", runs_root()), runs_root()).counts == {"new": 2, "orphaned": 1}
    (runs_root() / ".mimbench" / "sweeps" / "mine.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mine.json is damaged .*`mimbench sweep` with --name mine writes it anew"):
        load_study("mine", runs_root())


def test_without_optuna_a_search_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[search\]'"):
        Search([axis("seed=0..2")], "knn_top1", 0)


def _answer(sweep: Sweep, fails: str = "") -> None:
    """Runs that are best at a temperature of 0.2, by ratio; the one of `fails` fails."""
    for run, directory in sweep.study().prepare(runs_root()).items():
        if directory.state() in ("done", "failed"):
            continue
        number, temperature = directory.begin_attempt(), config_of(directory).temperature
        if run.name == fails:
            directory.end_attempt(number, "failed", "no data")
            continue
        write_result(directory, Outcome({"knn_top1": 90 - 10 * abs(math.log(temperature / 0.2))}), 1.0)
        directory.end_attempt(number, "done")


def test_optuna_proposes_what_past_runs_point_at() -> None:
    pytest.importorskip("optuna", reason="the extra `search` is not installed")
    axes = [axis("temperature=0.01..1:log")]
    sweep = Sweep("found", "cls/knn_handwritten", [], [])
    for _ in range(6):
        sweep = next_round(sweep, Search(axes, "knn_top1", seed=0), runs_root(), total=28, count=5)
        _answer(sweep)
    assert len(sweep.runs) == 28
    assert len({tuple(own) for own in sweep.runs}) == 28
    search = Search(axes, "knn_top1", seed=0)
    assert next_round(sweep, search, runs_root(), total=28, count=5) == sweep, "enough"
    assert search.best is not None
    values, best = search.best
    assert best > 88.5
    assert 0.17 < values["temperature"] < 0.24
    off = [abs(math.log(float(own[0].split("=")[1]) / 0.2)) for own in sweep.runs]
    assert sum(off[18:]) / 10 < sum(off[:10]) / 10, "later proposals lie nearer to the best"


def test_optuna_is_told_of_what_failed_and_what_is_going_on() -> None:
    optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")
    axes, state = [axis("temperature=0.01..1:log"), axis("k=10,20"), axis("seed=0..3")], optuna.trial.TrialState
    first = next_round(Sweep("s", "cls/knn_handwritten", [], []), Search(axes, "knn_top1", 0), runs_root(), 9, 3)
    first.study().check()
    _answer(first, fails=" ".join(first.runs[1]))
    second = next_round(first, Search(axes, "knn_top1", 0), runs_root(), 9, 3)
    search = Search(axes, "knn_top1", 0)
    next_round(second, search, runs_root(), 9, 0)
    told = [trial.state for trial in search.study.trials]
    assert told == [state.COMPLETE, state.FAIL, state.COMPLETE, state.RUNNING, state.RUNNING, state.RUNNING]
    with pytest.raises(ValueError, match="--metric finetune_top1 is not in the results, which have knn_top1"):
        next_round(second, Search(axes, "finetune_top1", 0), runs_root(), 9, 3)


def test_optuna_learns_from_runs_that_stopped_early() -> None:
    optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")
    axes = [axis("base_lr=1e-4,1e-3,1e-2")]
    runs = [["base_lr=1e-4"], ["base_lr=1e-3"], ["base_lr=1e-2"]]
    sweep = Sweep("s", "cls/finetune_handwritten", runs, ["epochs=9"]).halved([1, 3], 3, "finetune_top1", "median")
    made = [run for _, run in sorted((one.name, run) for one, run in sweep.study().prepare(runs_root()).items())]
    write_json(runs_root() / ".mimbench" / "rungs" / "s" / "1" / f"cls+{made[0].path.name}.json", {"value": 20.0})
    made[0].end_attempt(made[0].begin_attempt(), "stopped", "by the pruner")
    search = Search(axes, "finetune_top1", 0)
    next_round(sweep, search, runs_root(), 3, 0)
    states = optuna.trial.TrialState
    assert [(trial.params["base_lr"], trial.state) for trial in search.study.trials] == [
        ("1e-4", states.RUNNING), ("1e-3", states.RUNNING), ("1e-2", states.PRUNED),
    ]  # fmt: skip
    assert search.study.trials[2].intermediate_values == {1: 20.0}


def test_a_metric_of_another_task_or_misspelt_is_refused() -> None:
    require_metric("cls/linear_handwritten", "linear_top1")
    with pytest.raises(ValueError, match=r"linar_top1 .*did you mean linear_top1"):
        require_metric("cls/linear_handwritten", "linar_top1")
    with pytest.raises(ValueError, match="box_ap is no metric of cls/linear_handwritten"):
        require_metric("cls/linear_handwritten", "box_ap")


@pytest.mark.parametrize(("runs", "rungs", "warned"), [(8, [1, 3], True), (9, [1, 3], False), (3, [1], False)])
def test_a_sweep_that_may_stop_all_of_its_runs_says_so(runs: int, rungs: list[int], warned: bool) -> None:
    sweep = Sweep("s", "cls/finetune_handwritten", [[f"seed={seed}"] for seed in range(runs)], ["epochs=9"])
    assert sweep.too_few() == ""
    said = sweep.halved(rungs, 3, "finetune_top1").too_few()
    assert ("take at least 9 runs, fewer rungs, or --keep 2" in said) == warned
    assert bool(said) == warned


def test_rungs_are_kept_and_must_fit_the_runs(tmp_path: Path) -> None:
    axes = [axis("base_lr=1e-4,1e-3"), axis("epochs=2")]
    made = sweep_of("cls/finetune_handwritten", axes, grid(axes), "s")
    made.halved([1], 2, "finetune_top1").keep(tmp_path)
    study = saved("s", tmp_path)
    assert study is not None
    assert study.rungs == Rungs("s", "finetune_top1", "higher", (1,), 2)
    with pytest.raises(ValueError, match="rung 2 is not before the end of the runs, which have 2 epochs"):
        made.halved([1, 2], 2, "finetune_top1")
    with pytest.raises(ValueError, match="cls/knn_handwritten has no epochs"):
        sweep_of("cls/knn_handwritten", [axis("seed=0,1")], [("seed=1",)], "t").halved([1], 2, "knn_top1")


def test_runs_that_stop_early_come_in_a_shuffled_order() -> None:
    """In the order of a grid of rising values each run is better than those before it, and most would be promoted."""
    runs = [[f"base_lr=1e-{number}"] for number in range(9, 0, -1)]
    plain = Sweep("s", "cls/finetune_handwritten", runs, ["epochs=2"])
    names, halved = (
        [run.name for run in sweep.study().runs] for sweep in (plain, plain.halved([1], 3, "finetune_top1"))
    )
    assert names == [" ".join(own) for own in runs]
    assert halved != names
    assert sorted(halved) == sorted(names)
    again = Sweep("s", "cls/finetune_handwritten", runs[:5], ["epochs=2"]).halved([1], 3, "finetune_top1").study()
    assert [run.name for run in again.runs] == [name for name in halved if name in names[:5]], (
        "more runs: the same order"
    )


def test_the_file_of_a_sweep_reads_well(tmp_path: Path) -> None:
    sweep_of("cls/knn", [axis("seed=0..1")], grid([axis("seed=0..1")]), "a b").keep(tmp_path)
    [file] = (tmp_path / ".mimbench" / "sweeps").iterdir()
    assert json.loads(file.read_text()) == {
        "name": "a b",
        "recipe": "cls/knn",
        "runs": [["seed=0"], ["seed=1"]],
        "fixed": [],
    }
