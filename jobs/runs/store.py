"""The runs root: which directory a resolved config belongs to.

    <root>/<stage>/<recipe>-<identity>        root: $MIMBENCH_RUNS, else ./runs

Asking for the same config again finds the same directory. Settings that leave the result as it is (speed, plumbing,
where the input checkpoint lies) are not part of the identity: those of the last asking are the ones written down.

A checkpoint counts by its content; one that another run under the root makes, by that run's identity, so that the place
of a run is known before what it needs is done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.backbones.checkpoints.location import is_location, parse_location, user_code
from mimbench.engine.data.datasets import HANDWRITTEN, is_named, is_there, locate
from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.config import from_text, identity, to_text, with_overrides
from mimbench.engine.run.fields import recorded_name
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.lineage import Source, source_of, to_make_it
from mimbench.jobs.runs.recipes import Recipe, config_type, find
from mimbench.jobs.runs.records import GROUPS, groups_of
from mimbench.jobs.runs.tasks import makes_encoders


def runs_root() -> Path:
    """Where runs are kept."""
    return Path(os.environ.get("MIMBENCH_RUNS") or "runs").expanduser()


def resolve(recipe: str, overrides: Sequence[str], checkpoint: Path | None = None) -> tuple[Recipe, Any]:
    """The recipe called `recipe` and its config with `overrides`, and `checkpoint` (of a run needed before) set.

    Raises:
        ValueError: for an unknown recipe or key or a bad value, or for a checkpoint that this recipe does not take.
    """
    found = find(recipe)
    given = [f"checkpoint={checkpoint}"] if checkpoint else []
    try:
        return found, with_overrides(found.build(), [*overrides, *given])
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from None


class Place(NamedTuple):
    """Where a resolved config belongs, known before anything of it is written."""

    run: RunDir
    config: Any  # with absolute paths
    about: dict[str, Any]  # what `run.json` holds

    @property
    def identity(self) -> str:
        """The run's."""
        return str(self.about["identity"])


def place(
    recipe: str,
    config: Any,
    root: Path,
    source: Source | None = None,
    needs: Sequence[RunDir] = (),
    strict: bool = True,
) -> Place:
    """The place under `root` of recipe `stage/function` with this config.

    A checkpoint given as a run directory stands for the encoder that run made; the path of a data set is made absolute,
    for the same relative path is another data set elsewhere.

    Args:
        recipe: its name.
        config: resolved; its checkpoint must exist unless `source` is given.
        root: of all runs.
        source: the encoder it starts from, where that is yet to be made.
        needs: the runs that must be done before it.
        strict: the data set must be there; else a name that is not known here is taken for one that will be.

    Raises:
        FileNotFoundError: if the checkpoint or the data set does not exist.
        ValueError: if the checkpoint is none, or one that this run would refuse.
    """
    stage, _, function = recipe.partition("/")
    if strict or is_there(config.data):
        config = replace(config, data=_settled(config.data))
    if getattr(config, "subset", None):
        config = replace(config, subset=str(Path(config.subset).expanduser().absolute()))
    given = getattr(config, "checkpoint", None)
    if source is None and given is not None:
        partial, role = getattr(config, "allow_partial", False), getattr(config, "takes", None)
        source = source_of(encoder_file(Path(given)), root, stage, partial, role)
    if source is not None:
        config = replace(config, checkpoint=str(source.path))
    digest = identity(config, stage, source.key if source else None)
    about = {
        "recipe": recipe,
        "stage": stage,
        "identity": digest,
        "config": recorded_name(type(config)),
        "checkpoint": source.about() if source else None,
        "needs": [need.path.absolute().relative_to(root.absolute()).as_posix() for need in needs],
        GROUPS: groups_of(config),
    }
    return Place(RunDir(root / stage / f"{function}-{digest}"), config, about)


def create(found: Place) -> RunDir:
    """The run directory at a place; made if there is none, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    text = to_text(found.config)
    run = RunDir.create(found.run.path, text, found.about)
    if run.config.read_text(encoding="utf-8") != text and run.state() not in ("done", "running"):
        write_text(run.config, text)
    return run


def create_or_find(recipe: str, config: Any, root: Path) -> RunDir:
    """The directory under `root` of recipe `stage/function` with this config; made if there is none.

    Raises:
        FileNotFoundError: if the checkpoint or the data set does not exist.
        ValueError: if the checkpoint is none, or one that this run would refuse.
        OSError: if the directory cannot be written.
    """
    return create(place(recipe, config, root))


def _settled(data: str) -> str:
    """A data set's name as it is, its path made absolute; it is there, or will be written when the run starts."""
    if data == HANDWRITTEN:
        return data
    path = locate(data)
    return data if is_named(data) else str(path.absolute())


def encoder_file(checkpoint: Path) -> Path:
    """The file that a checkpoint given by a person is: itself, or what a run directory holds, absolute.

    That is the encoder of a pretraining, and the classifier (of the last weights) of a fine-tuning.

    It may be a `file://` URL, and have `?copy=NAME` at its end, which stays there; or `my_encoder.py:build`, a function
    of the user's own.

    Raises:
        FileNotFoundError: if there is none, saying what is missing.
        ValueError: for a URL of another kind.
    """
    if (code := user_code(checkpoint)) is not None:
        return code.location
    path = checkpoint.expanduser().absolute()
    if path.is_file():
        return path
    if is_location(str(checkpoint)):
        file, options = parse_location(str(checkpoint))
        return Path("?".join([str(encoder_file(file)), *(f"{key}={value}" for key, value in options.items())]))
    run = RunDir(path)
    if not run.about.is_file():
        what = "is a directory but not a run's" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"checkpoint {checkpoint} {what}; name a checkpoint's file or a pretraining's run directory"
        )
    if run.classifier.is_file():
        return run.classifier
    if run.detector.is_file():
        return run.detector
    if not run.encoder.is_file():
        state, recipe = run.state(), str(run.read_about()["recipe"])
        if state == "done" and not makes_encoders(recipe.partition("/")[0]):
            raise FileNotFoundError(f"{checkpoint} is a run of {recipe}, which leaves no weights to start from")
        raise FileNotFoundError(f"{checkpoint} has made no encoder (it is {state}); {to_make_it(run, state)}")
    return run.encoder


def config_of(run: RunDir) -> Any:
    """The resolved config in a run directory.

    Raises:
        ValueError: if this is no run directory, or its config cannot be read.
    """
    about = run.read_about()
    kind = config_type(about["stage"], about["config"])
    try:
        text = run.config.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{run.config} cannot be read: {error.strerror}") from None
    return from_text(kind, text, str(run.config))
