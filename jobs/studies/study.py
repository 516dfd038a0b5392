"""A study: runs, and the runs that each of them needs first.

    pretrain = Run("pretrain/crossmae_handwritten")
    probes = [Run("cls/linear_handwritten", (f"base_lr={rate}",), checkpoint=pretrain) for rate in (0.05, 0.1)]
    study = Study("learning rate", [pretrain, *probes])

A sweep is a study made by a loop. `mimbench plan FILE.py` reads `study` (a Study, or a function that returns one) from
a file; studies in jobs/studies have names, `mimbench plan crossmae/table2`.

`at_epochs` adds evaluations of intermediate encoders every N epochs; `start_from` replaces a pretraining, or an encoder
made elsewhere (`Given`), by a checkpoint file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NoReturn

from mimbench.engine.run.config import keys
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.runs.data_content import Contents
from mimbench.jobs.runs.lineage import made_by
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import Place, create, place, resolve
from mimbench.jobs.runs.tasks import task_of, tasks
from mimbench.jobs.studies.replaceable import require_shape


@dataclass(frozen=True)
class Run:
    """A recipe with overrides, and the encoder it starts from: from another run, a file, or none."""

    recipe: str
    overrides: tuple[str, ...] = ()
    checkpoint: Run | Path | None = None
    label: str = ""  # shown to people; the recipe's name if empty
    minutes: float = 1.0  # estimated duration: among runs that can start, the longest goes first
    epoch: int | None = None  # start from the other run's encoder after this epoch instead of its last
    after: tuple[Run | str, ...] = ()  # further runs (or their labels) that must be done before
    gpus: int = 1  # on a cluster: of each node
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.nodes < 1 or self.minutes <= 0:
            raise ValueError(
                f"{self.name}: gpus={self.gpus}, nodes={self.nodes}, minutes={self.minutes} must be positive"
            )
        if self.epoch is not None and (self.epoch < 1 or not isinstance(self.checkpoint, Run)):
            raise ValueError(
                f"{self.name}: epoch={self.epoch} needs a checkpoint from another run of the study, not a file or none"
            )

    @property
    def name(self) -> str:
        """Return the name shown to people."""
        return self.label or self.recipe

    @property
    def need(self) -> Run | None:
        """Return the run that makes the encoder this run starts from."""
        return self.checkpoint if isinstance(self.checkpoint, Run) else None

    def check(self) -> None:
        """Check the recipe and the overrides by building the config.

        Raises:
            ValueError: if the recipe or an override is wrong.
        """
        resolve(self.recipe, self.overrides, Path("encoder") if self.checkpoint else None)

    def place(
        self,
        root: Path,
        known: Mapping[Run, Place] | None = None,
        needs: Sequence[RunDir] = (),
        strict: bool = True,
        contents: Contents | None = None,
    ) -> Place:
        """Return the place of the run under `root`, even before the runs it needs are done; `known`: places of others.

        Raises:
            ValueError: if a recipe or an override is bad.
            FileNotFoundError: if a checkpoint file or the data set does not exist.
        """
        source = None
        if isinstance(self.checkpoint, Run):
            maker = (known or {}).get(self.checkpoint) or self.checkpoint.place(root, contents=contents)
            source, needs = made_by(maker.run, maker.identity, self.epoch, maker.former), needs or (maker.run,)
        file = source.path if source else self.checkpoint
        recipe, config = resolve(self.recipe, self.overrides, file if isinstance(file, Path) else None)
        return place(recipe.name, config, root, source, needs, strict, contents)

    def directory(self, root: Path) -> RunDir:
        """Return the run's directory under `root`; create it if it does not exist.

        Raises:
            ValueError: if a recipe or an override is bad.
            OSError: if the checkpoint does not exist, or the directory cannot be written.
        """
        return create(self.place(root))


@dataclass(frozen=True)
class Made(Run):
    """An existing run, to be resumed unchanged."""

    path: Path = field(default=Path(), kw_only=True)

    @classmethod
    def of(cls, run: RunDir, after: tuple[Run | str, ...] = ()) -> Made:
        """Return the existing run in that directory, to start when those in `after` are done.

        Raises:
            ValueError: if it is not a run directory.
        """
        return cls(str(run.read_about()["recipe"]), label=run.path.name, after=after, path=run.path.absolute())

    def check(self) -> None:
        """Do nothing: already checked when the run was created."""

    def place(
        self,
        root: Path,
        known: Mapping[Run, Place] | None = None,
        needs: Sequence[RunDir] = (),
        strict: bool = True,
        contents: Contents | None = None,
    ) -> Place:
        """Return its place."""
        run = RunDir(self.path)
        return Place(run, None, run.read_about())

    def directory(self, root: Path) -> RunDir:
        """Return its directory."""
        return RunDir(self.path)


@dataclass(frozen=True)
class Given(Run):
    """An encoder made elsewhere, whose file `start_from` names; the recipe is that of an evaluation of it."""

    def place(self, *_place: Any, **_options: Any) -> NoReturn:
        """Raise ValueError, which says how to name its file."""
        raise ValueError(f"{self.name} is made elsewhere; name its file with --from '{self.name}=FILE'")


@dataclass(frozen=True)
class Study:
    """Runs with a common name.

    Raises:
        ValueError: if a run is listed twice, needs an unlisted run, or needs itself through others.
    """

    name: str
    runs: Sequence[Run]
    rungs: Rungs | None = None  # stops its runs early
    notes: tuple[str, ...] = ()  # lines for people: what was chosen, and why

    def __post_init__(self) -> None:
        listed = set(self.runs)
        if len(listed) != len(self.runs):
            raise ValueError(f"study {self.name}: the same run is listed twice; remove one")
        for run in self.runs:
            for need in self.needs(run):
                if need not in listed:
                    raise ValueError(
                        f"study {self.name}: {run.name} needs {need.name}, which is not listed; add it to the study"
                    )
        try:
            TopologicalSorter({run: self.needs(run) for run in self.runs}).prepare()
        except CycleError as error:
            chain = " needs ".join(run.name for run in reversed(error.args[1]))
            raise ValueError(f"study {self.name}: {chain} is a circle; remove one of these needs") from None

    @cached_property
    def _alike(self) -> dict[str, list[Run]]:
        """Return the runs of each name."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.name, []).append(run)
        return found

    def needs(self, run: Run) -> tuple[Run, ...]:
        """Return the runs that must be done before `run`."""
        found = [run.need] if run.need is not None else []
        found += [self.named(need, run) for need in run.after]
        return tuple(dict.fromkeys(found))

    def named(self, need: Run | str, by: Run) -> Run:
        """Return the run that `by` needs, given as a run or by name.

        Raises:
            ValueError: if no run or several runs have that name.
        """
        if isinstance(need, Run):
            return need
        found = self._alike.get(need, [])
        if len(found) != 1:
            what = "is not listed" if not found else f"matches {len(found)} runs: give them different labels"
            raise ValueError(f"study {self.name}: {by.name} needs {need}, which {what}")
        return found[0]

    @cached_property
    def titles(self) -> dict[Run, str]:
        """Return the title of each run: its name and, if several share it, the settings that distinguish it."""
        shared = {
            name: Counter(fact for run in alike for fact in _facts(run, {})) for name, alike in self._alike.items()
        }
        titles: dict[Run, str] = {}
        for run in self.ordered():
            facts, count = shared[run.name], len(self._alike[run.name])
            apart = [text for fact, text in _facts(run, titles).items() if facts[fact] < count]
            titles[run] = " ".join([run.name, *apart])
        return titles

    def ordered(self) -> Iterator[Run]:
        """Yield the runs, each after the runs it needs."""
        return iter(TopologicalSorter({run: self.needs(run) for run in self.runs}).static_order())

    def check(self) -> None:
        """Build every config, so that an error in the last run appears before the first run starts.

        Raises:
            ValueError: for the first error.
        """
        for run in self.runs:
            run.check()

    def places(self, root: Path, strict: bool = True) -> dict[Run, Place]:
        """Return the place of each run under `root`, in the order of the list; nothing is written.

        Data sets must exist if `strict`.

        Raises:
            ValueError: if a recipe or an override is bad.
            FileNotFoundError: if a checkpoint file or a data set does not exist.
        """
        found: dict[Run, Place] = {}
        contents = Contents(root)
        for run in self.ordered():
            found[run] = run.place(root, found, [found[need].run for need in self.needs(run)], strict, contents)
        return {run: found[run] for run in self.runs}

    def prepare(self, root: Path) -> dict[Run, RunDir]:
        """Create the directories of all runs, or none: new ones are removed again if one cannot be written.

        Raises:
            ValueError: if a recipe or an override is bad.
            OSError: if a checkpoint or a data set does not exist, or a directory cannot be written.
        """
        places = self.places(root)
        new = [found.run for found in places.values() if not found.run.about.exists()]
        try:
            made = {run: create(found) for run, found in places.items()}
            if self.rungs is not None:
                for directory in made.values():
                    self.rungs.write(directory.path)
            return made
        except OSError:
            for run in new:
                _unmake(run)
            raise


def _facts(run: Run, titles: Mapping[Run, str]) -> dict[Hashable, str]:
    """Return what can distinguish `run` from others of its name, with its text; `titles`: of the runs it needs."""
    facts: dict[Hashable, str] = {run.recipe: run.recipe, **{text: text for text in run.overrides}}
    if run.checkpoint is not None:
        facts[run.checkpoint] = f"of {titles.get(run.need, '') if run.need else run.checkpoint}"
    if run.epoch is not None:
        facts[run.epoch] = f"after epoch {run.epoch}"
    return {**facts, (run.gpus, run.nodes): f"on {run.nodes} x {run.gpus} GPUs"}


def _unmake(run: RunDir) -> None:
    """Remove a run directory that was just created, unless another process already uses it."""
    if run.path.is_dir() and not (run.path / "attempts").exists():
        run.about.unlink(missing_ok=True)
        run.config.unlink(missing_ok=True)
        if not any(run.path.iterdir()):
            run.path.rmdir()


# ----------------------------------------------------------------------------------------------- studies from studies


def at_epochs(study: Study, every: int) -> Study:
    """Return `study` with each evaluation of a pretraining repeated for its encoder after every `every` epochs.

    Raises:
        ValueError: if no evaluated pretraining is longer than `every` epochs.
    """
    if every < 1:
        raise ValueError(f"--at every={every} must be at least 1 epoch")
    lengths = {run: _epochs(run) for run in study.runs}
    kept = {
        run: replace(run, label=run.name, overrides=(*run.overrides, f"{_keeps(run)}={every}"))
        for run, epochs in lengths.items()
        if epochs > every and any(other.need == run for other in study.runs)
    }
    if not kept:
        raise ValueError(
            f"--at every={every}: no pretraining that study {study.name} evaluates is longer; choose fewer epochs"
        )
    runs: list[Run] = []
    for run in (_with(run, kept) for run in study.runs):
        runs.append(run)
        length = lengths.get(next((old for old, new in kept.items() if new == run.need), run), 0)
        if run.need in kept.values() and run.epoch is None:
            epochs = range(every, length, every)
            runs += [replace(run, label=f"{run.name}, epoch {epoch}", epoch=epoch) for epoch in epochs]
    return replace(study, runs=runs)


def _epochs(run: Run) -> int:
    """Return the epochs of a run that can keep intermediate encoders; 0 for any other run."""
    return int(resolve(run.recipe, run.overrides)[1].epochs) if _keeps(run) else 0


def _keeps(run: Run) -> str:
    """Return the key that sets the epochs between kept encoders; "" if the config has none."""
    return task_of(find(run.recipe).stage).keeps


def start_from(study: Study, given: Sequence[str]) -> Study:
    """Return `study` with pretrainings replaced by checkpoints: each of `given` is `LABEL=FILE` or `LABEL=RUN`.

    LABEL is its label or recipe, or `pretrained` if the study has only one. Unnamed `Given` encoders are left out.

    Raises:
        ValueError: for any other text, listing the pretrainings that can be replaced; for a file of another size.
    """
    files = dict(_given(text, study) for text in given)
    for run, file in files.items():
        require_shape(file, resolve(run.recipe, run.overrides)[1].encoder, run.name)
    kept = {
        run: replace(
            run,
            checkpoint=files.get(run.need, run.checkpoint) if run.need else run.checkpoint,
            after=tuple(need for need in run.after if study.named(need, run) not in files),
        )
        for run in study.runs
        if run not in files and not any(isinstance(one, Given) and one not in files for one in (run, run.need))
    }
    return replace(study, runs=[_with(run, kept) for run in kept])


def _given(text: str, study: Study) -> tuple[Run, Path]:
    """Return the pretraining named in `LABEL=FILE`, and the file."""
    makers = [run for run in study.runs if any(other.need == run for other in study.runs)]
    names: dict[Run, tuple[str, ...]] = {run: (run.name, run.recipe, study.titles[run]) for run in makers}
    if len(makers) == 1:
        names = {makers[0]: (*names[makers[0]], "pretrained")}
    found = {run: name for run in makers for name in names[run] if text.startswith(f"{name}=")}
    if len(found) != 1 or not (file := text.removeprefix(f"{next(iter(found.values()))}=")):
        known = ", ".join(repr(study.titles[run]) for run in makers) or "none: it has no pretraining"
        raise ValueError(f"--from {text} is not NAME=FILE with a pretraining of study {study.name}: {known}")
    return next(iter(found)), Path(file)


def overridden(study: Study, overrides: Sequence[str]) -> Study:
    """Return `study` with `key=value` set in every run that has the key; `STAGE.key=value` only in runs of a stage.

    Raises:
        ValueError: if no run has the key.
    """
    changed = {run: run for run in study.runs}
    for text in overrides:
        stage, _, rest = text.partition(".")
        of_stage = stage in tasks() and rest
        takers = [
            run
            for run in study.runs
            if (not of_stage or run.recipe.startswith(f"{stage}/")) and _has(run, rest if of_stage else text)
        ]
        if not takers:
            raise ValueError(f"{text}: no run of study {study.name} has this key")
        for run in takers:
            given = (*changed[run].overrides, rest if of_stage else text)
            changed[run] = replace(changed[run], overrides=given)
    return replace(study, runs=[_with(run, changed) for run in study.runs])


def _has(run: Run, override: str) -> bool:
    key = override.partition("=")[0]
    return key in keys(find(run.recipe).build())


def _with(run: Run, changed: Mapping[Run, Run]) -> Run:
    """Return `run` with the runs it needs replaced as in `changed`."""
    now = changed.get(run, run)
    after = tuple(_with(need, changed) if isinstance(need, Run) else need for need in now.after)
    return replace(now, checkpoint=_with(now.need, changed) if now.need else now.checkpoint, after=after)
