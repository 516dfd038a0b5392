"""The work behind `mimbench sweep`: make or extend a sweep; jobs/cli/studies.py declares the command and saves it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.engine.run.pruning import Pruner
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.tasks import task_of
from mimbench.jobs.studies import search as searching
from mimbench.jobs.studies import sweep as sweeping
from mimbench.jobs.studies.study_files import ready_studies
from mimbench.jobs.studies.sweep import Sweep


@dataclass(frozen=True)
class Draws:
    """Which combinations of the values are run: all of them, or `random` draws, or `optuna` proposals."""

    random: int | None = None
    optuna: int | None = None
    at_a_time: int = 5  # proposals of Optuna in each round
    seed: int = 0


@dataclass(frozen=True)
class Rungs:
    """Epochs at which the worse runs stop early; none if `epochs` is None."""

    epochs: str | None = None  # "5,15"
    keep: int = 3  # one of so many goes on
    pruner: Pruner | None = None  # of Optuna, instead of `keep`


def make(
    recipe: str, values: Sequence[str], draws: Draws, rungs: Rungs, metric: str | None, name: str | None, root: Path
) -> Sweep:
    """Return the sweep of `recipe`; a sweep that exists under `root` is extended by Optuna's next round.

    Raises:
        ValueError: if a value, a name or a metric is wrong, or options exclude each other.
    """
    if name is not None and (name.endswith(".py") or name in ready_studies()):
        raise ValueError(f"--name {name} is the name of a file or a ready study; choose another name")
    axes = [sweeping.axis(text) for text in values]
    if draws.random is not None and draws.optuna is not None:
        raise ValueError("--random and --optuna exclude each other; give one of them")
    if metric is not None:
        sweeping.require_metric(recipe, metric)
    if draws.optuna is not None:
        made = _searched(recipe, axes, draws.optuna, draws, metric, name, root)
    else:
        runs = sweeping.draws(axes, draws.random, draws.seed) if draws.random else sweeping.grid(axes)
        made = sweeping.sweep_of(recipe, axes, runs, name)
    return _halved(made, rungs, metric)


def _halved(made: Sweep, rungs: Rungs, metric: str | None) -> Sweep:
    """Return the sweep with its rungs."""
    if rungs.epochs is None:
        if rungs.pruner is not None:
            raise ValueError("--pruner needs --rungs, the epochs at which it decides, as in --rungs 5,15")
        return made
    if metric is None:  # which metrics a recipe evaluates during training is known only when it runs
        raise ValueError(
            "--rungs needs --metric, a metric of the evaluations during training, as metrics.jsonl names it"
        )
    try:
        epochs = [int(epoch) for epoch in rungs.epochs.split(",")]
    except ValueError:
        raise ValueError(f"--rungs {rungs.epochs} is not a list of epochs, as in --rungs 5,15,45") from None
    halved = made.halved(epochs, rungs.keep, metric, rungs.pruner)
    if few := halved.too_few():
        print(f"warning: {few}", file=sys.stderr)
    return halved


def _searched(
    recipe: str,
    axes: Sequence[sweeping.Axis],
    total: int,
    draws: Draws,
    metric: str | None,
    name: str | None,
    root: Path,
) -> Sweep:
    """Return the sweep extended by the next round of runs that Optuna proposes, of `total` in all."""
    metric = metric or task_of(find(recipe).stage).main_metric
    varied = [axis for axis in axes if len(axis.values) != 1]
    search = searching.Search(varied, metric, draws.seed)
    empty = sweeping.sweep_of(recipe, axes, [], name)
    before = sweeping.saved_sweep(empty.name, root) or empty
    if (before.recipe, before.fixed) != (empty.recipe, empty.fixed):
        raise ValueError(
            f"sweep {before.name} exists for {before.recipe} {' '.join(before.fixed)}; choose another --name"
        )
    made = searching.next_round(before, search, root, total, draws.at_a_time)
    if search.best is not None:
        values, best = search.best
        print(f"best so far: {metric} {best:.4g} with {values}", file=sys.stderr)
    return made
