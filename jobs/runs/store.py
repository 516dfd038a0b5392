"""The runs root: the directory of each resolved config.

    <root>/<stage>/<recipe>-<identity>        root: $MIMBENCH_RUNS, else ./runs

Asking for the same config again finds the same directory. Settings that do not change the result (speed,
plumbing, path of the input checkpoint) are not part of the identity: the latest values are recorded.

Data count by the fingerprint of their files: other files under the same name are another run, and the same files under
another name or path are the same run. A checkpoint counts by its content; if another run under the root makes it, by
that run's identity, so that the place of a run is known before the runs it needs are done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.backbones.checkpoints.huggingface.folder import weights_file
from mimbench.backbones.checkpoints.location import (
    SETTINGS,
    is_location,
    join_location,
    parse_location,
    user_code,
    with_settings,
)
from mimbench.engine.data.datasets import HANDWRITTEN, is_named, is_there, locate
from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.config import SCHEMA, from_text, identity, keys, to_text, with_overrides
from mimbench.engine.run.fields import recorded_name
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.data_content import Contents, DataContent
from mimbench.jobs.runs.lineage import Source, source_of, to_make_it
from mimbench.jobs.runs.recipes import Recipe, config_type, find
from mimbench.jobs.runs.records import GROUPS, groups_of
from mimbench.jobs.runs.run_names import find as find_run
from mimbench.jobs.runs.tasks import makes_encoders


def runs_root() -> Path:
    """Return the directory of all runs."""
    return Path(os.environ.get("MIMBENCH_RUNS") or "runs").expanduser()


def resolve(recipe: str, overrides: Sequence[str], checkpoint: Path | None = None) -> tuple[Recipe, Any]:
    """Return the recipe and its config with `overrides` and, if given, `checkpoint` (of a run needed before).

    Raises:
        ValueError: if the recipe or a key is unknown, a value is bad, or the recipe does not take a checkpoint.
    """
    found = find(recipe)
    given = [f"checkpoint={checkpoint}"] if checkpoint else []
    try:
        built = found.build()
        return found, with_overrides(built, _with_settings(built, [*overrides, *given]))
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from None


def _with_settings(config: Any, overrides: Sequence[str]) -> list[str]:
    """Return `overrides` with `family=`, `heads=` and the like, unless they are keys of `config`, in `checkpoint=`."""
    settings = [one for one in overrides if (key := one.partition("=")[0]) in SETTINGS and key not in keys(config)]
    places = [place for place, one in enumerate(overrides) if one.startswith("checkpoint=")]
    if not settings or not places:
        return list(overrides)
    location, _ = with_settings(overrides[places[-1]].partition("=")[2], settings)
    rest = [one for place, one in enumerate(overrides) if one not in settings and place not in places]
    return [*rest, f"checkpoint={location}"]


class Place(NamedTuple):
    """The place of a resolved config, known before anything is written."""

    run: RunDir
    config: Any  # with absolute paths
    about: dict[str, Any]  # content of `run.json`
    data: DataContent | None = None  # of the data set; None of a run that exists already
    former: str = ""  # the identity that earlier releases gave it, which knew nothing of the data's content

    @property
    def identity(self) -> str:
        """Return the identity of the run."""
        return str(self.about["identity"])

    @property
    def former_run(self) -> RunDir | None:
        """Return the run of an earlier release with the same settings; None if there is none."""
        name = self.run.path.name.removesuffix(self.identity) + self.former
        run = RunDir(self.run.path.with_name(name))
        return run if self.former and run.about.is_file() else None


def place(
    recipe: str,
    config: Any,
    root: Path,
    source: Source | None = None,
    needs: Sequence[RunDir] = (),
    strict: bool = True,
    contents: Contents | None = None,
) -> Place:
    """Return the place under `root` of recipe `stage/function` with this config.

    A checkpoint given as a run directory stands for the encoder that run made; the path of a data set is made absolute,
    because a relative path means another data set in another directory.

    Args:
        recipe: its name.
        config: resolved; its checkpoint must exist unless `source` is given.
        root: of all runs.
        source: the encoder it starts from, if it does not exist yet.
        needs: the runs that must be done before it.
        strict: require that the data set exists; otherwise accept names that are unknown on this machine.
        contents: of the data sets, shared by the runs of one plan.

    Raises:
        FileNotFoundError: if the checkpoint or the data set does not exist.
        ValueError: if the checkpoint is not one, or this run does not accept it.
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
    data = (contents or Contents(root)).of(config, stage)
    digest = identity(config, stage, source.key if source else None, data.fingerprint)
    about = {
        "recipe": recipe,
        "stage": stage,
        "identity": digest,
        "config": recorded_name(type(config)),
        "schema": SCHEMA,
        "checkpoint": source.about() if source else None,
        "data": data.about(),
        "needs": [need.path.absolute().relative_to(root.absolute()).as_posix() for need in needs],
        GROUPS: groups_of(config),
    }
    former = identity(config, stage, source.former if source else None, schema=1)
    return Place(RunDir(root / stage / f"{function}-{digest}"), config, about, data, former)


def create(found: Place) -> RunDir:
    """Return the run directory at a place; create it atomically if it does not exist.

    Raises:
        OSError: if it cannot be written.
    """
    evaluates = getattr(found.config, "checkpoint", None) and not makes_encoders(found.about["stage"])
    text = to_text(found.config, unused="encoder" if evaluates else "")
    run = RunDir.create(found.run.path, text, found.about)
    if run.config.read_text(encoding="utf-8") != text and run.state() not in ("done", "running"):
        write_text(run.config, text)
    return run


def create_or_find(recipe: str, config: Any, root: Path) -> RunDir:
    """Return the directory under `root` of recipe `stage/function` with this config; create it if needed.

    Raises:
        FileNotFoundError: if the checkpoint or the data set does not exist.
        ValueError: if the checkpoint is not one, or this run does not accept it.
        OSError: if the directory cannot be written.
    """
    return create(place(recipe, config, root))


def _settled(data: str) -> str:
    """Return a data set's name unchanged, or its path made absolute; it must exist or be generated by the run."""
    if data == HANDWRITTEN:
        return data
    path = locate(data)
    return data if is_named(data) else str(path.absolute())


def encoder_file(checkpoint: Path) -> Path:
    """Return the absolute path of the file that a checkpoint given by a user stands for.

    A run, given by its directory or as `mimbench status` names it (`jobs.runs.run_names`), stands for the encoder of a
    pretraining, the classifier (last weights) of a fine-tuning, or a detector.

    Also accepted: a folder that Hugging Face's transformers wrote, which stands for the weights in it; a `file://` URL;
    `?copy=NAME` at the end, which is kept; a user's function, `my_encoder.py:build`.

    Raises:
        FileNotFoundError: if it does not exist, naming what is missing.
        ValueError: if it is another kind of URL.
    """
    if (code := user_code(checkpoint)) is not None:
        return code.location
    path = checkpoint.expanduser().absolute()
    if not RunDir(path).about.is_file():
        path = weights_file(path)
    if path.is_file():
        return path
    if is_location(str(checkpoint)):
        file, options = parse_location(str(checkpoint))
        return Path(join_location(encoder_file(file), options))
    run = RunDir(path) if path.exists() else _run_called(checkpoint)
    if not run.about.is_file():
        raise FileNotFoundError(
            f"checkpoint {checkpoint} is not a run directory and holds no weights; "
            "name a checkpoint's file or a pretraining's run"
        )
    if run.classifier.is_file():
        return run.classifier
    if run.detector.is_file():
        return run.detector
    if not run.encoder.is_file():
        state, recipe = run.state(), str(run.read_about()["recipe"])
        if state == "done" and not makes_encoders(recipe.partition("/")[0]):
            raise FileNotFoundError(
                f"{checkpoint} is a run of {recipe}, which saves no weights; name a pretraining or fine-tuning run"
            )
        raise FileNotFoundError(f"{checkpoint} (state: {state}) has not written an encoder; {to_make_it(run, state)}")
    return run.encoder


def _run_called(checkpoint: Path) -> RunDir:
    try:
        return find_run(str(checkpoint), runs_root().absolute())
    except ValueError as error:
        raise FileNotFoundError(f"checkpoint {checkpoint} does not exist, and {error}") from None


def config_of(run: RunDir) -> Any:
    """Return the resolved config of a run directory.

    Raises:
        ValueError: if it is not a run directory, or its config cannot be read.
    """
    about = run.read_about()
    kind = config_type(about["stage"], about["config"])
    try:
        text = run.config.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{run.config} cannot be read: {error.strerror}") from None
    return from_text(kind, text, str(run.config))
