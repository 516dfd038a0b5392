"""The cost of a run in hours of one A100: `Cost`, how a recipe states it, and an estimate from operations.

    @costs(hours=45, gpus=4)                  # on a recipe: the time its source reports
    def crossmae_vitb_800ep() -> Pretrain: ...

    stated(crossmae_vitb_800ep)               # Cost(180, "the recipe")
    of_operations(1.3e21)                     # Cost(5.6, "arithmetic at 65 TFLOP/s")

If a recipe states no cost, the task's estimate (`Task.cost`) is used. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

RATE = 65e12  # operations per second on one A100, two per multiply-add: CrossMAE's Tables 4 and 18 give 60 to 73e12
IMAGENET, IMAGENET_VAL = 1_281_167, 50_000  # image counts that estimates use
RECIPE = "the recipe"  # `source` of a cost that a recipe states

R = TypeVar("R", bound=Callable[[], Any])


@dataclass(frozen=True)
class Cost:
    """A number of hours of one A100, and its source."""

    hours: float
    source: str

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.hours + other.hours, " and ".join(dict.fromkeys((self.source, other.source))))

    @property
    def text(self) -> str:
        """The hours with two digits; an estimate has no higher precision."""
        rounded = float(f"{self.hours:.2g}")
        return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


@dataclass(frozen=True)
class Stated:
    """The cost that a recipe states: a number of hours or days on a number of A100."""

    number: float
    unit: str  # "h" or "days"
    gpus: int

    @property
    def cost(self) -> Cost:
        """The cost in hours of one A100."""
        return Cost(self.number * (24 if self.unit == "days" else 1) * self.gpus, RECIPE)

    @property
    def text(self) -> str:
        """`About 45 h on 4 A100.`, the last sentence of the recipe's description."""
        return f"About {self.number:g} {self.unit} on {self.gpus} A100."


def costs(*, gpus: int, hours: float | None = None, days: float | None = None) -> Callable[[R], R]:
    """Return a decorator that records a recipe's cost: `hours` or `days` of wall time on `gpus` A100.

    Raises:
        ValueError: unless exactly one of `hours` and `days` is given and all values are positive.
    """
    number = hours if days is None else days
    if number is None or (hours is not None and days is not None) or number <= 0 or gpus < 1:
        raise ValueError(f"hours={hours}, days={days}, gpus={gpus}: give hours or days, not both, all positive")
    said = Stated(number, "h" if days is None else "days", gpus)

    def record(recipe: R) -> R:
        recipe.__dict__["cost"] = said
        return recipe

    return record


def stated(recipe: Callable[[], Any]) -> Stated | None:
    """Return the cost that `costs` recorded on `recipe`; None if there is none."""
    said = getattr(recipe, "cost", None)
    return said if isinstance(said, Stated) else None


def of_operations(operations: float) -> Cost:
    """Return the cost of `operations` (two per multiply-add) at 65 TFLOP/s."""
    return Cost(operations / RATE / 3600, "arithmetic at 65 TFLOP/s")
