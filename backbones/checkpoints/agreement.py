"""What a user says of a checkpoint, compared with what the file states.

    FILE?heads=6      equal to what the file states, or the file states nothing: taken
                      unequal: refused; other heads, activation, eps, grid or family make another encoder
    FILE?mean=.5      unequal: taken, because images may deliberately be normalised otherwise; the log, `inspect` and
                      `result.json` (`checkpoint.replaced`) say what it replaces

A value that is only published for the family and not stated by the file (DINOv2's eps of 1e-6) can be replaced too, and
that is recorded in the same way. A whole detector or segmenter takes no settings: it is used as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.backbones.checkpoints.family import Family
from mimbench.backbones.checkpoints.info import EncoderInfo
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.checkpoints.stated import CONFIGS, GIVEN, RECORDED, Stated, of_whole, stated

STATISTICS = ("mean", "std")  # of images: settings may replace what the file states
CONFIG = "config.json"  # sources, as messages name them
IMAGES = "preprocessor_config.json"
SHOWN = "the shapes of its weights"


@dataclass(frozen=True)
class Own:
    """A value that the file states, and where."""

    value: Any
    source: str


class Agreement:
    """What is true of one encoder: the user's settings, what the file states, and the family's usual values."""

    def __init__(self, said: Sequence[Stated], family: Family, recorded: EncoderInfo | None, described: bool) -> None:
        self.given = given_of(said)
        self.others = said[1:] if self.given else said
        self.family, self.recorded, self.described = family, recorded, described
        self.replaced: list[str] = []

    def value(self, name: str, usual: Callable[[], Any], shown: Any = None, published: bool = True) -> Any:
        """Return the value of the trait `name`: given, else stated by the file, else `shown` by shapes, else `usual`.

        `usual()` is the value in the metadata of mimbench or in transformers' config, else the family's; `published`
        says whether the family's is published for encoders of this size, so that replacing it is recorded.

        Raises:
            ValueError: if the user's value contradicts the file's.
        """
        own = self._own(name, usual, shown)
        given = None if self.given is None else getattr(self.given, name)
        if given is None:
            return usual() if own is None else own.value
        if own is not None and not equal(given, own.value):
            if name not in STATISTICS:
                raise ValueError(contradiction(name, given, own))
            self.replaced.append(f"{name}={text(given)} replaces {text(own.value)}, which {own.source} states")
        elif own is None and published and name not in self._unsure and not equal(given, before := usual()):
            self.replaced.append(f"{name}={text(given)} replaces {text(before)}, which is published for this family")
        return given

    @property
    def _unsure(self) -> tuple[str, ...]:
        return self.recorded.assumed if self.recorded else self.family.unsure

    def _own(self, name: str, usual: Callable[[], Any], shown: Any) -> Own | None:
        if self.recorded or self.described:
            beside = IMAGES if name in STATISTICS else CONFIG
            return None if name in self._unsure else Own(usual(), RECORDED if self.recorded else beside)
        stated = ((value, one.source) for one in self.others if (value := getattr(one, name)) is not None)
        return next((Own(*found) for found in stated), None if shown is None else Own(shown, SHOWN))

    def require_grid(self, own: int) -> None:
        """Refuse a pretraining grid that is not square, or that the user gives and is not `own`.

        Raises:
            ValueError: naming both.
        """
        stated = next((one.grid for one in (self.given, *self.others) if one is not None and one.grid), None)
        if stated is not None and stated[0] != stated[1]:
            rows, columns = stated
            raise ValueError(
                f"its pretraining images have {rows} x {columns} patches; mimbench supports only square grids"
            )
        if self.given is not None and self.given.grid is not None and self.given.grid[0] != own:
            raise ValueError(
                f"grid={self.given.grid[0]} is given, and its positions are for {own} x {own} patches; leave grid= out"
            )

    def require_family(self, names: Sequence[str | None]) -> None:
        """Refuse `family=` if the file states another: `names`, of which each is right.

        Raises:
            ValueError: naming both.
        """
        if self.given is not None and self.given.family is not None and self.given.family not in names:
            source = RECORDED if self.recorded else CONFIG
            raise ValueError(contradiction("family", self.given.family, Own(names[0], source)))


def given_of(said: Sequence[Stated]) -> Stated | None:
    """Return what the user says, which `stated` puts first; None without settings."""
    return said[0] if said and said[0].source == GIVEN else None


def contradiction(name: str, given: object, own: Own) -> str:
    """Return the refusal of a setting: key, both values, and the way out."""
    correct = f", or correct {own.source} if it is wrong" if own.source in CONFIGS else ""
    return f"{name}={text(given)} contradicts {own.source}: {name}={text(own.value)}; leave {name}= out{correct}"


def require_none_given(opened: Opened, kind: str) -> None:
    """Refuse settings of a file that is used as a whole `kind`, unless the file states the same.

    Raises:
        ValueError: in one line, naming file, setting and way out.
    """
    given = given_of(stated(opened)) if opened.options else None
    if given is None:
        return
    own = of_whole(opened)
    for name in opened.options:
        value, states = getattr(given, name), getattr(own, name, None)
        if states is not None and equal(value, states):
            continue
        if own is not None and states is not None:
            why = contradiction(name, value, Own(states, own.source))
        else:
            why = f"{name}={text(value)} cannot be set: it is used as it was trained; leave {name}= out"
        detector = kind == "detector" and name in STATISTICS
        way_out = f", or give pixel_{name}= to the run" if detector else ""
        raise ValueError(f"{opened.file} holds a whole {kind}, and {why}{way_out}")


def equal(first: Any, second: Any) -> bool:
    """Whether two values of a trait are the same; numbers to six digits."""
    if isinstance(first, str) or isinstance(second, str):
        return bool(first == second)
    ours, theirs = (value if isinstance(value, tuple) else (value,) for value in (first, second))
    return len(ours) == len(theirs) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(ours, theirs, strict=True)
    )


def text(value: object) -> str:
    """Return a value as people write it: `0.5,0.5,0.5`, `1e-06`, `8x8`."""
    if isinstance(value, tuple):
        return ("x" if len(value) == 2 else ",").join(text(one) for one in value)  # two: rows and columns of a grid
    return f"{value:g}" if isinstance(value, float) else str(value)
