"""What a run costs in hours of one A100: `Cost`, how a recipe states it, and what arithmetic makes of operations.

    @costs(hours=45, gpus=4)                  # on a recipe: what its source says it took
    def crossmae_vitb_800ep() -> Pretrain: ...

    stated(crossmae_vitb_800ep)               # Cost(180, "the recipe")
    of_operations(1.3e21)                     # Cost(5.6, "arithmetic at 65 TFLOP/s")

A task's own estimate (`Task.cost`) is asked where a recipe states nothing. Starts without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

RATE = 65e12  # operations a second on one A100, two to a multiply-add: CrossMAE's Tables 4 and 18 come to 60 to 73
IMAGENET, IMAGENET_VAL = 1_281_167, 50_000  # images that an estimate counts with
RECIPE = "the recipe"  # the source of what a recipe states

R = TypeVar("R", bound=Callable[[], Any])


@dataclass(frozen=True)
class Cost:
    """Hours of one A100."""

    hours: float
    source: str

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.hours + other.hours, " and ".join(dict.fromkeys((self.source, other.source))))

    @property
    def text(self) -> str:
        """The hours with two digits; more would claim a precision that an estimate has not."""
        rounded = float(f"{self.hours:.2g}")
        return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


@dataclass(frozen=True)
class Stated:
    """What a recipe states of its cost: a number of hours or days, on so many A100."""

    number: float
    unit: str  # "h" or "days"
    gpus: int

    @property
    def cost(self) -> Cost:
        """In hours of one A100."""
        return Cost(self.number * (24 if self.unit == "days" else 1) * self.gpus, RECIPE)

    @property
    def text(self) -> str:
        """`About 45 h on 4 A100.`, as the description of the recipe ends."""
        return f"About {self.number:g} {self.unit} on {self.gpus} A100."


def costs(*, gpus: int, hours: float | None = None, days: float | None = None) -> Callable[[R], R]:
    """Return a decorator that records on a recipe what it costs: `hours` or `days` of wall time on `gpus` A100.

    Raises:
        ValueError: unless one of `hours` and `days` is given and everything is positive.
    """
    number = hours if days is None else days
    if number is None or (hours is not None and days is not None) or number <= 0 or gpus < 1:
        raise ValueError(f"hours={hours}, days={days}, gpus={gpus}: give hours or days, and all of it positive")
    said = Stated(number, "h" if days is None else "days", gpus)

    def record(recipe: R) -> R:
        recipe.__dict__["cost"] = said
        return recipe

    return record


def stated(recipe: Callable[[], Any]) -> Stated | None:
    """Return what `costs` recorded on `recipe`; None where it states nothing."""
    said = getattr(recipe, "cost", None)
    return said if isinstance(said, Stated) else None


def of_operations(operations: float) -> Cost:
    """Return the cost of so many operations (two to a multiply-add) at 65 TFLOP/s."""
    return Cost(operations / RATE / 3600, "arithmetic at 65 TFLOP/s")
