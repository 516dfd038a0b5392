"""A study without a file: one recipe, with values for some keys in all their combinations, or drawn.

    mimbench sweep cls/linear_vitb base_lr=0.05,0.1,0.2 seed=0..2        a grid: 9 runs
    mimbench sweep cls/linear_vitb base_lr=1e-2..1:log --random 20       20 draws
    mimbench sweep cls/linear_vitb base_lr=1e-2..1:log --optuna 20       five at a time, where the best ones point

    VALUES      A,B,C        these                     A..B         whole numbers from A to B
                A..B:N       N of even spacing         A..B:logN    N of even ratio
                A..B:log     (drawn only) any between, by ratio;  A..B of decimal numbers: any between

What was asked for is kept under the runs root, and `mimbench plan NAME` and `mimbench submit NAME` find it. Asked again
with other values the sweep is replaced, and runs that are in it no more are orphans of the plan.

    <root>/.mimbench/sweeps/<name>.json
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from mimbench.engine.run.atomic import write_json
from mimbench.jobs.studies.study import Run, Study

RANGE = re.compile(r"(?P<low>[^,:]+?)\.\.(?P<high>[^,:]+)(:(?P<log>log)?(?P<count>\d+)?)?")
LARGEST = 100_000  # runs of a grid


@dataclass(frozen=True)
class Axis:
    """A key and the values it takes: a list of texts, or all numbers between two."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def is_range(self) -> bool:
        """Any number from `low` to `high`."""
        return not self.values


def axis(text: str) -> Axis:
    """`key=VALUES` as an axis (see above).

    Raises:
        ValueError: if it is none, saying what is wrong.
    """
    key, separator, values = text.partition("=")
    if not separator or not key or not values:
        raise ValueError(f"{text!r} is not of the form key=values, as in lr=1e-4,2e-4 or seed=0..2")
    match = RANGE.fullmatch(values)
    if match is None:
        return Axis(key, tuple(_listed(values)))
    low, high = _number(match["low"], text), _number(match["high"], text)
    if not low < high or (match["log"] and low <= 0):
        raise ValueError(f"{text}: a range rises from a lower to a higher number, both positive with log")
    whole = all(re.fullmatch(r"-?\d+", match[end]) for end in ("low", "high"))
    if match["count"]:
        return Axis(key, tuple(_spaced(low, high, int(match["count"]), bool(match["log"]), text)))
    return Axis(key, (), low, high, bool(match["log"]), whole)


def _listed(values: str) -> list[str]:
    """Texts between commas; commas within brackets belong to a value."""
    parts = re.findall(r"(?:\[[^]]*]|[^,\[])+", values)
    return [part.strip() for part in parts]


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{whole}: {text!r} is not a number") from None


def _spaced(low: float, high: float, count: int, log: bool, text: str) -> Iterator[str]:
    if count < 2:
        raise ValueError(f"{text}: at least 2 values")
    for index in range(count):
        share = index / (count - 1)
        yield _text(low * (high / low) ** share if log else low + (high - low) * share)


def _text(value: float) -> str:
    return f"{value:.6g}"


# -------------------------------------------------------------------------------------------------- grids and draws


def grid(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """Overrides of every combination, the last key changing fastest.

    Raises:
        ValueError: for a range of decimal numbers without a count, or more runs than anybody means.
    """
    lists = [[f"{one.key}={value}" for value in _enumerated(one)] for one in axes]
    if math.prod(map(len, lists)) > LARGEST:
        raise ValueError(f"a grid of {math.prod(map(len, lists)):,} runs; draw some of them with --random N")
    return list(itertools.product(*lists))


def _enumerated(one: Axis) -> Sequence[str]:
    if not one.is_range:
        return one.values
    if not one.whole or one.log:
        kind = "log" if one.log else ""
        raise ValueError(
            f"{one.key}: a grid wants to know how many values, as in {one.key}={_text(one.low)}..{_text(one.high)}:"
            f"{kind}5; or draw with --random N"
        )
    return [str(value) for value in range(int(one.low), int(one.high) + 1)]


def draws(axes: Sequence[Axis], count: int, seed: int) -> list[tuple[str, ...]]:
    """Overrides of `count` different random draws; the same for the same seed, and a longer list begins the same.

    Raises:
        ValueError: if there are not so many.
    """
    generator, found = random.Random(seed), dict[tuple[str, ...], None]()
    for _ in range(100 * count):
        if len(found) == count:
            break
        found[tuple(f"{one.key}={_drawn(one, generator)}" for one in axes)] = None
    if len(found) < count:
        raise ValueError(f"--random {count}: only {len(found)} different runs were found; a grid lists all there are")
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
    """The sweep of `runs`; a key with one value is of all, and in no label. Without a name it is called by its keys."""
    fixed = [f"{one.key}={one.values[0]}" for one in axes if len(one.values) == 1]
    varied = [one.key for one in axes if len(one.values) != 1]
    called = name or "-".join(["sweep", recipe.rpartition("/")[2], *varied])
    return Sweep(called, recipe, [[text for text in own if text not in fixed] for own in runs], fixed)


# ----------------------------------------------------------------------------------------------------- kept and found


@dataclass(frozen=True)
class Sweep:
    """What is kept of a sweep."""

    name: str
    recipe: str
    runs: list[list[str]]  # overrides of each
    fixed: list[str] = field(default_factory=list)  # of all

    def study(self) -> Study:
        """As a study; each run is labelled with what is its own.

        Raises:
            ValueError: if two of its runs are one.
        """
        runs = [Run(self.recipe, (*self.fixed, *own), label=" ".join(own) or self.recipe) for own in self.runs]
        return Study(self.name, runs)

    def keep(self, root: Path) -> None:
        """Write it down, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        write_json(_file(self.name, root), asdict(self))


def saved(name: str, root: Path) -> Study | None:
    """The study of the sweep that was made under this name, if one was.

    Raises:
        ValueError: if its file is damaged.
    """
    sweep = saved_sweep(name, root)
    return sweep.study() if sweep else None


def saved_sweep(name: str, root: Path) -> Sweep | None:
    """What is kept of the sweep of this name.

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
    """The names of all sweeps under `root`."""
    return [unquote(file.stem) for file in sorted((root / ".mimbench" / "sweeps").glob("*.json"))]


def _file(name: str, root: Path) -> Path:
    return root / ".mimbench" / "sweeps" / f"{quote(name, safe=' ,')}.json"
