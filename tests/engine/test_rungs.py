"""Early stopping at rungs: who goes on is decided by files alone; a run that was stopped resumes bit-equal."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mimbench.engine.run.pruning import Pruner
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import Rungs, StoppedEarly, is_promoted, may_go_on, rungs_of
from mimbench.engine.training.state import load_state, state_path
from mimbench.engine.training.train import Training, train

RULE = Rungs("lr", "score", "higher", (1, 3, 9), keep=3)


def _runs(root: Path, count: int) -> list[RunDir]:
    made = [RunDir.create(root / "cls" / f"r{n:02}", "", {"recipe": "cls/r", "stage": "cls", "identity": str(n)})
            for n in range(count)]  # fmt: skip
    for run in made:
        RULE.write(run.path)
    return made


def _climb(run: RunDir, value: float, first: int, steps: list[int]) -> None:
    """Let a run go on from rung `first` until it is stopped, then its heir, as a process does."""
    number = run.begin_attempt()
    try:
        for rung in range(first, 4):
            steps[0] += {0: 1, 1: 2, 2: 6, 3: 18}[rung]  # epochs from the rung before
            if rung == 3:
                run.end_attempt(number, "done")
                run.result.write_text('{"metrics": {}}')
                return
            RULE.arrive(run.path, rung, {"score": value})
    except StoppedEarly as stopped:
        run.end_attempt(number, "stopped", str(stopped))
        if stopped.heir is not None:
            heir = RunDir(stopped.heir)
            reached = max(r for r in range(3) if is_promoted(heir.path, RULE, r))
            _climb(heir, float(int(heir.path.name[1:])), reached + 1, steps)


def test_a_third_of_the_steps_and_the_best_run(tmp_path: Path) -> None:
    """27 runs of 27 epochs, whose values are their numbers, arriving in any order."""
    for seed in range(2):
        runs, steps = _runs(tmp_path / str(seed), 27), [0]
        order = list(range(27))
        random.Random(seed).shuffle(order)
        for number in order:
            _climb(runs[number], float(number), 0, steps)
        states = [run.state() for run in runs]
        assert states[26] == "done", "the best run is never lost"
        assert states.count("done") <= 4
        assert set(states) == {"done", "stopped"}
        assert steps[0] <= 27 * 27 / 3
        assert "may go on" in runs[0].attempts()[-1]["why"]


def _arrive(run: RunDir, value: float, heirs: Any) -> None:
    try:
        RULE.arrive(run.path, 0, {"score": value})
    except StoppedEarly as stopped:
        heirs.put(stopped.heir)
    else:
        heirs.put(None)


def test_those_that_arrive_at_once_promote_each_run_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for attempt in range(3):
        runs, heirs = _runs(tmp_path / str(attempt), 9), fork.SimpleQueue()
        processes = [fork.Process(target=_arrive, args=(run, float(run.path.name[1:]), heirs)) for run in runs]
        for process in processes:
            process.start()
        named = [heir for _ in processes if (heir := heirs.get()) is not None]
        for process in processes:
            process.join()
        assert len(named) == len(set(named)), "no run is handed to two processes"
        assert is_promoted(runs[8].path, RULE, 0)
        assert sum(is_promoted(run.path, RULE, 0) for run in runs) >= 3


def test_a_stopped_run_that_is_promoted_later_can_go_on(tmp_path: Path) -> None:
    first, second, third = _runs(tmp_path, 3)
    for run, value in ((first, 5.0), (second, 1.0)):
        number = run.begin_attempt()
        with pytest.raises(StoppedEarly, match=r"score \d is number \d of \d runs so far, and 0 may go on") as stopped:
            RULE.arrive(run.path, 0, {"score": value})
        run.end_attempt(number, "stopped", str(stopped.value))
    assert first.state() == "stopped"
    with pytest.raises(StoppedEarly) as stopped:
        RULE.arrive(third.path, 0, {"score": 2.0})
    assert stopped.value.heir == first.path
    assert first.state() == "interrupted"
    assert second.state() == "stopped"
    (second.path / "rungs.json").unlink()
    assert may_go_on(second.path), "the sweep has no rungs any more"


@pytest.mark.parametrize("epochs", [(), (3, 2), (0, 1), (2, 2)])
def test_rungs_must_rise(epochs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be rising numbers of epochs from 1"):
        Rungs("lr", "score", "higher", epochs)


def test_a_training_stops_at_its_rung_and_goes_on_bit_equal(
    make_training: Callable[..., Training], tmp_path: Path
) -> None:
    """72 vectors in batches of 8: an epoch is 9 steps. The rung is after epoch 1."""

    def fields() -> dict[str, Any]:
        return {"steps": 27, "dropout": 0.2, "evaluate": lambda model: {"score": 1.0}}

    about = {"recipe": "test/tiny", "stage": "cls", "identity": "0"}
    straight, halted = (RunDir.create(tmp_path / "cls" / name, "", about) for name in ("straight", "halted"))
    train(straight, make_training(**fields()))
    rule = Rungs("lr", "score", "higher", (1,), keep=3)
    rule.write(halted.path)
    with pytest.raises(StoppedEarly, match="stopped early after 1 epochs: score 1 is number 1 of 1"):
        train(halted, make_training(**fields()))
    assert [file.name for file in halted.checkpoints.iterdir()] == ["step-00000009.pt"]
    with pytest.raises(StoppedEarly):  # started again without promotion, it stops again at once
        train(halted, make_training(**fields()))
    assert rungs_of(halted.path) == rule
    for name in ("x", "y"):
        other = RunDir.create(tmp_path / "cls" / name, "", about)
        with pytest.raises(StoppedEarly):
            rule.arrive(other.path, 0, {"score": 0.5})
    train(halted, make_training(**fields()))
    left, right = (load_state(state_path(run.checkpoints, 27))["stepper"]["model"] for run in (straight, halted))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_metric_that_is_not_evaluated_is_named(tmp_path: Path) -> None:
    (run,) = _runs(tmp_path, 1)
    with pytest.raises(ValueError, match="stops runs by score, but evaluations during training have top1"):
        RULE.arrive(run.path, 0, {"top1": 3.0})


@pytest.mark.parametrize(("pruner", "keep"), [("median", 3), ("percentile", 4)])
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_optunas_pruner_decides_as_in_a_study_of_optunas_own(
    tmp_path: Path, pruner: Pruner, keep: int, better: Literal["higher", "lower"]
) -> None:
    """The peer: one process, an objective that reports after each rung and asks, as Optuna's documentation has it."""
    optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")
    draws = random.Random(1)
    curves = [[draws.random() + (rung if better == "higher" else -rung) for rung in range(3)] for _ in range(40)]
    kinds = optuna.pruners
    study = optuna.create_study(
        direction="maximize" if better == "higher" else "minimize",
        pruner=kinds.MedianPruner() if pruner == "median" else kinds.PercentilePruner(100 / keep),
    )

    def objective(trial: Any) -> float:
        for epoch, value in zip((1, 3), curves[trial.number], strict=False):
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return curves[trial.number][-1]

    study.optimize(objective, n_trials=len(curves))
    theirs = [trial.last_step if trial.state.name == "PRUNED" else None for trial in study.trials]
    rule, ours = Rungs("lr", "score", better, (1, 3), keep, pruner), []
    for run, curve in zip(_runs(tmp_path, len(curves)), curves, strict=True):
        rule.write(run.path)
        ours.append(_stopped_at(rule, run, curve))
    assert ours == theirs
    assert {None, 1, 3} == set(ours)


def _stopped_at(rule: Rungs, run: RunDir, curve: list[float]) -> int | None:
    """Train a made-up run; the epoch at which it stopped, for good."""
    number = run.begin_attempt()
    for rung, epoch in enumerate(rule.epochs):
        try:
            rule.arrive(run.path, rung, {"score": curve[rung]})
        except StoppedEarly as stopped:
            assert f"Optuna's {rule.pruner} pruner" in str(stopped)
            assert stopped.heir is None
            run.end_attempt(number, "stopped", str(stopped))
            assert run.state() == "stopped"
            return epoch
        rule.arrive(run.path, rung, {"score": curve[rung]})  # killed and resumed just after it: the same decision
    run.result.write_text("{}")
    run.end_attempt(number, "done")
    return None
