"""A search that learns from finished runs: Optuna proposes runs and is told their results (ask and tell).

    mimbench sweep cls/linear_vitb base_lr=1e-2..1:log seed=0,1 --optuna 20 --metric linear_top1
    mimbench submit sweep-linear_vitb       # then repeat the first line for the next round

No call waits: each tells Optuna the results of all finished runs of the sweep and adds a round of proposals. Unfinished
runs count as proposed, so that no run is proposed twice; those that stopped early at a rung count as pruned. There is
no database: the runs hold all information. Needs the extra `search`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.engine.run.pruning import installed
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import rung_values
from mimbench.jobs.runs.tasks import metric_of
from mimbench.jobs.studies.sweep import Axis, Sweep


class Search:
    """Proposals for the next runs of a sweep.

    Args:
        axes: the keys to vary; lists are choices, ranges are numbers between two bounds.
        metric: a metric of the results; its task defines whether higher or lower is better.
        seed: of the sampler; the same runs and seed give the same proposals.

    Raises:
        ValueError: if Optuna is not installed.
    """

    def __init__(self, axes: Sequence[Axis], metric: str, seed: int) -> None:
        self._optuna = installed()
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self.axes, self.metric = axes, metric
        sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        direction = "minimize" if metric_of(metric).quantity.better == "lower" else "maximize"
        self.study = self._optuna.create_study(direction=direction, sampler=sampler)
        self._distributions = {one.key: self._distribution(one) for one in axes}

    def _distribution(self, one: Axis) -> Any:
        kinds = self._optuna.distributions
        if not one.is_range:
            return kinds.CategoricalDistribution(list(one.values))
        if one.whole:
            return kinds.IntDistribution(int(one.low), int(one.high), log=one.log)
        return kinds.FloatDistribution(one.low, one.high, log=one.log)

    def tell(
        self,
        overrides: Sequence[str],
        result: dict[str, Any] | None,
        failed: bool = False,
        stopped: Mapping[int, float] | None = None,
    ) -> None:
        """Tell Optuna about one run: its result, a failure, or that it is not done yet.

        Of a run that stopped early, `stopped` has the metric by epoch at the rungs that it reached.

        Raises:
            ValueError: if the result does not have the metric.
        """
        state, value = self._optuna.trial.TrialState, None
        if result is not None:
            metrics = result.get("metrics", {})
            if self.metric not in metrics:
                raise ValueError(
                    f"--metric {self.metric} is not in the results, which have {', '.join(metrics) or 'no metrics'}"
                )
            value = float(metrics[self.metric])
        unfinished = state.FAIL if failed else state.PRUNED if stopped else state.RUNNING
        found = state.COMPLETE if result is not None else unfinished
        given = dict(text.split("=", 1) for text in overrides)
        params = {key: self._value(key, given[key]) for key in self._distributions if key in given}
        distributions = {key: self._distributions[key] for key in params}
        trial = self._optuna.trial.create_trial(
            state=found,
            value=value,
            params=params,
            distributions=distributions,
            intermediate_values=dict(stopped or {}) if found == state.PRUNED else None,
        )
        self.study.add_trial(trial)

    def _value(self, key: str, text: str) -> Any:
        one = next(one for one in self.axes if one.key == key)
        if not one.is_range:
            return text
        within = min(max(float(text), one.low), one.high)  # rounding to six digits may pass the bound
        return int(within) if one.whole else within

    def ask(self, count: int, known: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the overrides of at most `count` new runs, none of them in `known`."""
        found: list[list[str]] = []
        taken = {tuple(own) for own in known}
        for _ in range(20 * count):
            if len(found) == count:
                break
            trial = self.study.ask(self._distributions)
            own = [f"{one.key}={_written(trial.params[one.key])}" for one in self.axes]
            if tuple(own) not in taken:
                taken.add(tuple(own))
                found.append(own)
        return found

    @property
    def best(self) -> tuple[dict[str, Any], float] | None:
        """Return the best settings so far and their metric."""
        if not any(trial.value is not None for trial in self.study.trials):
            return None
        return self.study.best_params, self.study.best_value


def _written(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def next_round(sweep: Sweep, search: Search, root: Path, total: int, count: int) -> Sweep:
    """Return `sweep` with up to `count` more runs, at most `total`, proposed from its finished runs.

    Raises:
        ValueError: if the recipe or an override is bad.
    """
    runs = sweep.runs
    places = sweep.study().places(root) if runs else {}
    by_values = {run.overrides[len(sweep.fixed) :]: place for run, place in places.items()}
    for own in runs:
        run: RunDir = by_values[tuple(own)].run
        state = run.state() if run.about.exists() else "new"
        stopped = rung_values(run.path) if state == "stopped" else None
        search.tell(own, run.read_result(), failed=state == "failed", stopped=stopped)
    wanted = max(0, min(count, total - len(runs)))
    return replace(sweep, runs=[*runs, *search.ask(wanted, runs)])
