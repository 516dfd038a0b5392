"""Optuna's pruners at the rungs of a sweep: `is_pruned(...)` asks one whether a run should stop.

No process coordinates the runs, so the study is made anew from the metrics in the runs root: each run is a trial, the
metrics at its rungs are its intermediate values at those epochs. Needs the extra `search`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Pruner = Literal["median", "percentile"]


def is_pruned(
    pruner: Pruner,
    keep: int,
    better: Literal["higher", "lower"],
    values: Mapping[int, float],
    finished: Iterable[Mapping[int, float]],
) -> bool:
    """Return whether the pruner stops a run.

    Args:
        pruner: median stops a run that is worse than the median of the finished ones, percentile one that is not among
            their best `1 / keep`; both with Optuna's defaults, so five runs must have finished first.
        keep: see `percentile`.
        better: the direction of the metric.
        values: the run's metric by epoch, up to now.
        finished: the same for each run that is done.

    Raises:
        ValueError: if Optuna is not installed.
    """
    optuna = installed()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = optuna.pruners
    made = pruners.MedianPruner() if pruner == "median" else pruners.PercentilePruner(100 / keep)
    study = optuna.create_study(direction="minimize" if better == "lower" else "maximize", pruner=made)
    complete = optuna.trial.TrialState.COMPLETE
    for other in finished:
        if other:
            last = other[max(other)]
            study.add_trial(optuna.trial.create_trial(state=complete, value=last, intermediate_values=dict(other)))
    trial = study.ask()
    for epoch in sorted(values):
        trial.report(values[epoch], epoch)
    return bool(trial.should_prune())


def installed() -> Any:
    """Return the package Optuna.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise ValueError(
            "--optuna and --pruner need the package optuna, which is not installed; pip install -e '.[search]'"
        ) from error
