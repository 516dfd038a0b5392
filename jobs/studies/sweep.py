"""A study without a file: one recipe with several values of some keys, in all combinations or drawn at random.

    mimbench sweep cls/linear_vitb base_lr=0.05,0.1,0.2 seed=0..2        a grid: 9 runs
    mimbench sweep cls/linear_vitb base_lr=1e-2..1:log --random 20       20 draws
    mimbench sweep cls/linear_vitb base_lr=1e-2..1:log --optuna 20       20 runs proposed by Optuna, five at a time

    VALUES      A,B,C        these values              A..B         whole numbers from A to B
                A..B:N       N of even spacing         A..B:logN    N of even ratio
                A..B:log     (drawn only) log-uniform;  A..B of decimal numbers (drawn only): uniform

The sweep is saved under the runs root, where `mimbench plan NAME` and `mimbench submit NAME` find it. The same command
with other values replaces the sweep, and its former runs are orphaned in the plan.

    <root>/.mimbench/sweeps/<name>.json
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.nearest import did_you_mean
from mimbench.engine.run.pruning import Pruner
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import metric_of, task_of
from mimbench.jobs.studies.study import Run, Study

RANGE = re.compile(r"(?P<low>[^,:]+?)\.\.(?P<high>[^,:]+)(:(?P<log>log)?(?P<count>\d+)?)?")
LARGEST = 100_000  # most runs of a grid


@dataclass(frozen=True)
class Axis:
    """A key and its values: a list of texts, or all numbers between two bounds."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def is_range(self) -> bool:
        """Return whether the values are all numbers from `low` to `high`."""
        return not self.values


def axis(text: str) -> Axis:
    """Return `key=VALUES` as an axis (see above).

    Raises:
        ValueError: if the text is not of that form; the message says why.
    """
    key, separator, values = text.partition("=")
    if not separator or not key or not values:
        raise ValueError(f"{text!r} is not of the form key=values, as in lr=1e-4,2e-4 or seed=0..2")
    match = RANGE.fullmatch(values)
    if match is None:
        return Axis(key, tuple(_listed(values)))
    low, high = _number(match["low"], text), _number(match["high"], text)
    if not low < high or (match["log"] and low <= 0):
        raise ValueError(f"{text}: a range must rise from a lower to a higher number, both positive with log")
    whole = all(re.fullmatch(r"-?\d+", match[end]) for end in ("low", "high"))
    if match["count"]:
        return Axis(key, tuple(_spaced(low, high, int(match["count"]), bool(match["log"]), text)))
    return Axis(key, (), low, high, bool(match["log"]), whole)


def _listed(values: str) -> list[str]:
    """Return the texts between commas; commas within brackets belong to a value."""
    parts = re.findall(r"(?:\[[^]]*]|[^,\[])+", values)
    return [part.strip() for part in parts]


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{whole}: {text!r} is not a number") from None


def _spaced(low: float, high: float, count: int, log: bool, text: str) -> Iterator[str]:
    if count < 2:
        raise ValueError(f"{text}: give a range at least 2 values")
    for index in range(count):
        share = index / (count - 1)
        yield _text(low * (high / low) ** share if log else low + (high - low) * share)


def _text(value: float) -> str:
    return f"{value:.6g}"


# -------------------------------------------------------------------------------------------------- grids and draws


def grid(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """Return the overrides of every combination, the last key changing fastest.

    Raises:
        ValueError: if a range of decimal numbers has no count, or the grid is larger than `LARGEST`.
    """
    lists = [[f"{one.key}={value}" for value in _enumerated(one)] for one in axes]
    if math.prod(map(len, lists)) > LARGEST:
        raise ValueError(
            f"the grid has {math.prod(map(len, lists)):,} runs, more than {LARGEST:,}; draw some with --random N"
        )
    return list(itertools.product(*lists))


def _enumerated(one: Axis) -> Sequence[str]:
    if not one.is_range:
        return one.values
    if not one.whole or one.log:
        kind = "log" if one.log else ""
        raise ValueError(
            f"{one.key}: a grid needs the number of values, as in {one.key}={_text(one.low)}..{_text(one.high)}:"
            f"{kind}5; or draw with --random N"
        )
    return [str(value) for value in range(int(one.low), int(one.high) + 1)]


def draws(axes: Sequence[Axis], count: int, seed: int) -> list[tuple[str, ...]]:
    """Return the overrides of `count` different random draws; a seed fixes them, and a longer list begins the same.

    Raises:
        ValueError: if fewer than `count` different runs exist.
    """
    generator, found = random.Random(seed), dict[tuple[str, ...], None]()
    for _ in range(100 * count):
        if len(found) == count:
            break
        found[tuple(f"{one.key}={_drawn(one, generator)}" for one in axes)] = None
    if len(found) < count:
        raise ValueError(
            f"--random {count}: only {len(found)} different runs were found; leave out --random to run all"
        )
    return list(found)


def _drawn(one: Axis, generator: random.Random) -> str:
    if not one.is_range:
        return generator.choice(one.values)
    if one.log:
        value = math.exp(generator.uniform(math.log(one.low), math.log(one.high)))
        return str(round(value)) if one.whole else _text(value)
    return (
        str(generator.randint(int(one.low), int(one.high)))
        if one.whole
        else _text(generator.uniform(one.low, one.high))
    )


def sweep_of(recipe: str, axes: Sequence[Axis], runs: Sequence[tuple[str, ...]], name: str | None) -> Sweep:
    """Return the sweep of `runs`; keys with one value are in no label. The default name is made of recipe and keys."""
    fixed = [f"{one.key}={one.values[0]}" for one in axes if len(one.values) == 1]
    varied = [one.key for one in axes if len(one.values) != 1]
    called = name or "-".join(["sweep", recipe.rpartition("/")[2], *varied])
    return Sweep(called, recipe, [[text for text in own if text not in fixed] for own in runs], fixed)


def require_metric(recipe: str, metric: str) -> None:
    """Check that the task of a recipe measures `metric`.

    Raises:
        ValueError: with the nearest name, if it does not.
    """
    measured = [one.key for one in task_of(find(recipe).stage).metrics]
    if metric not in measured:
        raise ValueError(f"--metric {metric} is no metric of {recipe}'s task; {did_you_mean(metric, measured)}")


# ----------------------------------------------------------------------------------------------------- kept and found


@dataclass(frozen=True)
class Sweep:
    """A saved sweep."""

    name: str
    recipe: str
    runs: list[list[str]]  # overrides of each run
    fixed: list[str] = field(default_factory=list)  # overrides of all runs
    rungs: dict[str, Any] | None = None  # how runs are stopped early, as engine.run.rungs.Rungs has it

    def study(self) -> Study:
        """Return the sweep as a study; each run is labelled with its varying settings.

        Runs that are stopped early come in a shuffled order, always the same: if each were better than those before it,
        as in a grid of rising values, most would be promoted at the rungs.

        Raises:
            ValueError: if two runs are the same.
        """
        ordered = self.runs if self.rungs is None else sorted(self.runs, key=self._shuffled)
        runs = [Run(self.recipe, (*self.fixed, *own), label=" ".join(own) or self.recipe) for own in ordered]
        rungs = None if self.rungs is None else Rungs(**{**self.rungs, "epochs": tuple(self.rungs["epochs"])})
        return Study(self.name, runs, rungs)

    def _shuffled(self, own: Sequence[str]) -> str:
        return hashlib.sha256(" ".join([self.name, *own]).encode()).hexdigest()

    def halved(self, epochs: Sequence[int], keep: int, metric: str, pruner: Pruner | None = None) -> Sweep:
        """Return the sweep with its runs stopped early: one of `keep` goes on beyond each of these epochs.

        With a `pruner` of Optuna, that decides which.

        Raises:
            ValueError: if the recipe has no epochs, or the last rung is not before the end of the shortest run.
        """
        configs = [resolve(self.recipe, (*self.fixed, *own))[1] for own in self.runs]
        lengths = [int(config.epochs) for config in configs if hasattr(config, "epochs")]
        if len(lengths) < len(configs):
            raise ValueError(f"{self.recipe} has no epochs, so its runs have no rungs to stop at")
        if epochs[-1] >= min(lengths):
            raise ValueError(f"rung {epochs[-1]} is not before the end of the runs, which have {min(lengths)} epochs")
        quoted = quote(self.name, safe=" ,")
        rungs = Rungs(quoted, metric, metric_of(metric).quantity.better, tuple(epochs), keep, pruner)
        return replace(self, rungs={key: value for key, value in asdict(rungs).items() if value is not None})

    def too_few(self) -> str:
        """Return a warning if the sweep has so few runs that all may stop at its rungs; "" if not."""
        if self.rungs is None or self.rungs.get("pruner"):
            return ""
        keep, rungs = self.rungs["keep"], len(self.rungs["epochs"])
        if len(self.runs) >= keep**rungs:
            return ""
        return (
            f"with {len(self.runs)} runs, none may train to the end: beyond each of {rungs} rungs goes one of {keep}; "
            f"take at least {keep**rungs} runs, fewer rungs, or --keep 2"
        )

    def keep(self, root: Path) -> None:
        """Save the sweep, atomically.

        Raises:
            OSError: if it cannot be written.
        """
        record = {key: value for key, value in asdict(self).items() if value is not None}
        write_json(_file(self.name, root), record)


def saved(name: str, root: Path) -> Study | None:
    """Return the study of the sweep of this name; None if it does not exist.

    Raises:
        ValueError: if its file is damaged.
    """
    sweep = saved_sweep(name, root)
    return sweep.study() if sweep else None


def saved_sweep(name: str, root: Path) -> Sweep | None:
    """Return the sweep of this name; None if it does not exist.

    Raises:
        ValueError: if its file is damaged.
    """
    file = _file(name, root)
    if not file.is_file():
        return None
    try:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Sweep(**kept)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); `mimbench sweep` with --name {name} writes it anew") from error


def saved_names(root: Path) -> list[str]:
    """Return the names of all sweeps under `root`."""
    return [unquote(file.stem) for file in sorted((root / ".mimbench" / "sweeps").glob("*.json"))]


def _file(name: str, root: Path) -> Path:
    return root / ".mimbench" / "sweeps" / f"{quote(name, safe=' ,')}.json"
