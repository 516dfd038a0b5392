"""A study: runs, and what each of them needs to be done first.

    pretrain = Run("pretrain/crossmae_handwritten")
    probes = [Run("cls/knn_handwritten", (f"temperature={t}",), checkpoint=pretrain) for t in (0.05, 0.1)]
    study = Study("temperature", [pretrain, *probes])

A sweep is a study made by a loop. A run can only need runs that were made before it, so there are no cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.rundir import RunDir
from jobs.store import create_or_find, resolve


@dataclass(frozen=True)
class Run:
    """A recipe with overrides, and the encoder it starts from: that of another run, a file, or none."""

    recipe: str
    overrides: tuple[str, ...] = ()
    checkpoint: Run | Path | None = None
    label: str = ""  # for people; the recipe's name when empty
    minutes: float = 1.0  # a guess of how long it takes: among runs that may start, the longest goes first

    @property
    def name(self) -> str:
        """What people see."""
        return self.label or self.recipe

    @property
    def need(self) -> Run | None:
        """The run that must be done before this one."""
        return self.checkpoint if isinstance(self.checkpoint, Run) else None

    def directory(self, root: Path) -> RunDir:
        """The run's directory under `root`, made if there is none. What it needs must be done.

        Raises:
            ValueError: for a bad recipe or override.
            FileNotFoundError: if the checkpoint is not there.
        """
        file = self.checkpoint.directory(root).encoder if isinstance(self.checkpoint, Run) else self.checkpoint
        recipe, config = resolve(self.recipe, self.overrides, file)
        return create_or_find(recipe.name, config, root)


@dataclass(frozen=True)
class Study:
    """Runs under one name."""

    name: str
    runs: Sequence[Run]

    def __post_init__(self) -> None:
        if len(set(self.runs)) != len(self.runs):
            raise ValueError(f"study {self.name}: the same run is listed twice")
        for run in self.runs:
            if run.need is not None and run.need not in self.runs:
                raise ValueError(f"study {self.name}: {run.name} needs {run.need.name}, which is not listed")

    def check(self) -> None:
        """Build every config, so that a mistake in the last run shows before the first one starts.

        Raises:
            ValueError: the first mistake.
        """
        for run in self.runs:
            resolve(run.recipe, run.overrides, Path("encoder") if run.checkpoint else None)
