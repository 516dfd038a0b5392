"""Early stopping of the runs of a sweep: asynchronous successive halving (ASHA; Li et al., MLSys 2020, algorithm 2).

    <run>/rungs.json                      the rule: sweep, metric, direction, epochs of the rungs, share that goes on
    <root>/.mimbench/rungs/<sweep>/<rung>/<stage>+<run>.json      the metric that a run had at a rung
                                          <stage>+<run>.promoted  exists if the run may go on beyond the rung

No process coordinates the runs. Whichever reaches a rung writes its metric there, then reads those of the others: of n
runs at a rung, the best n / keep go on. A run that may not go on stops, and can be promoted later by the arrival of
others: its promotion is claimed by exactly one of them, and that one's process goes on with it. A pruner of Optuna
(engine/run/pruning.py) decides instead for each run by itself, and a run that it stops is not promoted later.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mimbench.engine.run.atomic import claim_json, write_json
from mimbench.engine.run.pruning import Pruner, is_pruned

FILE = "rungs.json"
MARK = ".promoted"


class StoppedEarly(Exception):  # noqa: N818
    """A run of a sweep stops at a rung; `heir` is the run that its process should go on with, if any."""

    def __init__(self, why: str, heir: Path | None = None) -> None:
        super().__init__(why)
        self.heir = heir


@dataclass(frozen=True)
class Rungs:
    """The rule by which the runs of a sweep are stopped.

    Raises:
        ValueError: if it would stop no run, or all.
    """

    sweep: str
    metric: str  # a metric of the evaluations during training
    better: Literal["higher", "lower"]
    epochs: tuple[int, ...]  # of the rungs, rising
    keep: int = 3  # one of `keep` runs goes on beyond a rung
    pruner: Pruner | None = None  # of Optuna, which then decides, for each run by itself

    def __post_init__(self) -> None:
        if not self.epochs or list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 1:
            raise ValueError(f"rungs {','.join(map(str, self.epochs))} must be rising numbers of epochs from 1")
        if self.keep < 2:
            raise ValueError(f"keep={self.keep} must be at least 2: one of that many runs goes on beyond a rung")

    def write(self, run: Path) -> None:
        """Apply the rule to the run at `run`."""
        write_json(run / FILE, asdict(self))

    def at(self, before: float, now: float) -> int | None:
        """Return the number of the rung reached between two times in epochs; None if none is."""
        return next((number for number, epoch in enumerate(self.epochs) if before < epoch <= now), None)

    def expected(self, epochs: float, after: float = 0.0) -> float:
        """Return how many more of its `epochs` a run trains on average, `after` those that it has.

        On average, because one of `keep` runs goes on beyond each rung.
        """
        ends = [*(epoch for epoch in self.epochs if after < epoch < epochs), epochs]
        left, share, start = 0.0, 1.0, after
        for end in ends:
            left += share * (end - start)
            share, start = share / self.keep, end
        return left

    def arrive(self, run: Path, rung: int, metrics: dict[str, float]) -> None:
        """Record the metric of the run at `run` at a rung, and promote whichever run now deserves it.

        Raises:
            StoppedEarly: if this run does not go on.
            ValueError: if the metric is not evaluated, or not finite.
        """
        value = metrics.get(self.metric)
        if value is None:
            known = ", ".join(metrics) or "no metrics"
            raise ValueError(f"the sweep stops runs by {self.metric}, but evaluations during training have {known}")
        if not math.isfinite(value):
            raise ValueError(f"{self.metric} is {value} after {self.epochs[rung]} epochs")
        write_json(_record(self, run, rung), {"value": value})
        if self.pruner is not None:
            self._ask_optuna(self.pruner, run, rung, value)
            return
        ranked = self._ranked(run, rung)
        allowed = len(ranked) // self.keep
        claimed = [name for name in ranked[:allowed] if self._claim(_folder(self, run, rung), name)]
        if is_promoted(run, self, rung):
            return
        place = ranked.index(_name(run)) + 1
        heir = next((_path(run, name) for name in claimed), None)
        raise StoppedEarly(
            f"stopped early after {self.epochs[rung]} epochs: {self.metric} {value:.4g} is number {place} of "
            f"{len(ranked)} runs so far, and {allowed} may go on",
            heir,
        )

    def _ask_optuna(self, pruner: Pruner, run: Path, rung: int, value: float) -> None:
        """Let Optuna's pruner decide whether the run at `run` goes on."""
        if is_promoted(run, self, rung):
            return
        done = (_name(file.parent) for file in run.absolute().parents[1].glob("*/*/result.json"))
        finished = [self._values(run, name) for name in done]
        if is_pruned(pruner, self.keep, self.better, self._values(run, _name(run)), finished):
            raise StoppedEarly(
                f"stopped early after {self.epochs[rung]} epochs: Optuna's {pruner} pruner judged {self.metric} "
                f"{value:.4g} beside {len([one for one in finished if one])} finished runs"
            )
        self._claim(_folder(self, run, rung), _name(run))

    def _values(self, run: Path, name: str) -> dict[int, float]:
        """Return the metric by epoch of the run of that name at the rungs that it reached."""
        files = {epoch: _folder(self, run, rung) / f"{name}.json" for rung, epoch in enumerate(self.epochs)}
        return {
            epoch: float(json.loads(file.read_text(encoding="utf-8"))["value"])
            for epoch, file in files.items()
            if file.exists()
        }

    def _ranked(self, run: Path, rung: int) -> list[str]:
        """Return the names of the runs at a rung, the best first; of equals, the first by name."""
        sign = -1.0 if self.better == "higher" else 1.0
        files = _folder(self, run, rung).glob("*.json")
        values = {file.stem: json.loads(file.read_text(encoding="utf-8"))["value"] for file in files}
        return sorted(values, key=lambda name: (sign * values[name], name))

    @staticmethod
    def _claim(folder: Path, name: str) -> bool:
        """Promote a run; return whether this call did it."""
        try:
            claim_json(folder / f"{name}{MARK}", {})
        except FileExistsError:
            return False
        return True


def rungs_of(run: Path) -> Rungs | None:
    """Return the rule that applies to the run at `run`; None if it belongs to no such sweep.

    Raises:
        ValueError: if its file is damaged.
    """
    file = run / FILE
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Rungs(**{**kept, "epochs": tuple(kept["epochs"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); submit the sweep again to write it anew") from None


def is_promoted(run: Path, rule: Rungs, rung: int) -> bool:
    """Return whether the run at `run` may go on beyond a rung."""
    return (_folder(rule, run, rung) / f"{_name(run)}{MARK}").exists()


def may_go_on(run: Path) -> bool:
    """Return whether a run that stopped early may go on now: it was promoted at the last rung that it reached.

    Without its rule (the sweep was submitted again without early stopping) it may.
    """
    rule = rungs_of(run)
    if rule is None:
        return True
    reached = [rung for rung in range(len(rule.epochs)) if _record(rule, run, rung).exists()]
    return not reached or is_promoted(run, rule, reached[-1])


def rung_values(run: Path) -> dict[int, float]:
    """Return the metric of the run at `run` by epoch, at the rungs of its sweep that it reached, rising.

    Raises:
        ValueError: if a file is damaged.
    """
    rule = rungs_of(run)
    return {} if rule is None else rule._values(run, _name(run))


def _folder(rule: Rungs, run: Path, rung: int) -> Path:
    return run.absolute().parents[1] / ".mimbench" / "rungs" / rule.sweep / str(rule.epochs[rung])


def _record(rule: Rungs, run: Path, rung: int) -> Path:
    return _folder(rule, run, rung) / f"{_name(run)}.json"


def _name(run: Path) -> str:
    return f"{run.absolute().parent.name}+{run.name}"


def _path(run: Path, name: str) -> Path:
    stage, _, directory = name.partition("+")
    return run.absolute().parents[1] / stage / directory
