"""Who made the encoder that a run starts from: another run, known by its identity before it is done, or a file.

    pretrain/crossmae-1a2b3c4d5e  ->  "1a2b3c4d5e", or "1a2b3c4d5e@100" of its encoder after 100 epochs

A run that starts from another's encoder is named by that run's identity, so that a plan can name every directory.
Which weights it really got is recorded when it starts; if the encoder has been made again since, its result is stale.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.backbones.checkpoints.location import Role, user_code
from mimbench.backbones.content import content_hash
from mimbench.engine.run.config import from_text
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.hashes import file_hash
from mimbench.jobs.runs.recipes import config_type
from mimbench.jobs.runs.tasks import role_of


class Source(NamedTuple):
    """The encoder that a run starts from."""

    path: Path  # absolute; a copy in a file with several is `?copy=NAME` at its end
    hash: str | None  # of the content; None where it is another run's to make
    run: str | None  # identity of the run that makes it, `@EPOCH` behind it of an intermediate encoder

    @property
    def key(self) -> str:
        """What stands for it in the identity of the run."""
        return f"run:{self.run}" if self.run else str(self.hash)

    def about(self) -> dict[str, Any]:
        """As `run.json` has it."""
        return {"path": str(self.path), "hash": self.hash, "run": self.run}


def made_by(run: RunDir, identity: str, epoch: int | None = None) -> Source:
    """The encoder that `run`, of that identity, makes: the last one, or the one after `epoch` epochs."""
    file = run.encoder if epoch is None else run.encoder_at(epoch)
    return Source(file.absolute(), None, identity if epoch is None else f"{identity}@{epoch}")


def source_of(file: Path, root: Path, stage: str, allow_partial: bool, role: Role | None = None) -> Source:
    """What the existing `file` is to a run of `stage` under `root`: an encoder made there, or a file of its own.

    Raises:
        ValueError: if the file is no checkpoint, or one that the run would refuse.
    """
    maker = maker_of(file, root)
    if maker is not None:
        run, epoch = maker
        return made_by(run, str(run.read_about()["identity"]), epoch)
    role = role or role_of(stage)
    return Source(file, file_hash(file, root, allow_partial=allow_partial, role=role), None)


def maker_of(file: Path, root: Path) -> tuple[RunDir, int | None] | None:
    """The run under `root` whose encoder `file` is, and after which epoch; None of any other file."""
    try:
        parts = file.relative_to(root.absolute()).parts
    except ValueError:
        return None
    run = RunDir(root.absolute().joinpath(*parts[:2]))
    if len(parts) < 3 or not run.about.is_file():
        return None
    if file == run.encoder:
        return run, None
    epoch = file.stem.removeprefix("epoch-")
    return (run, int(epoch)) if epoch.isdigit() and file == run.encoder_at(int(epoch)) else None


def take(run: RunDir, number: int) -> str | None:
    """The content hash of the checkpoint that `run` starts from, recorded with its start `number`; None from scratch.

    Raises:
        FileNotFoundError: if it is not there, saying who was to make it.
        ValueError: if it is no checkpoint, or a user's own code that has changed since the run was created.
    """
    about = run.read_about()
    checkpoint = about.get("checkpoint")
    if not checkpoint:
        return None
    content: str | None = checkpoint["hash"]
    if content is None:
        content = content_of(run, about)
    elif user_code(checkpoint["path"]) is not None and content != content_hash(checkpoint["path"]):
        raise ValueError(
            f"{checkpoint['path']} has changed since {run.path} was created, whose identity holds the file as it was: "
            f"ask for {about['recipe']} with this checkpoint again, which is another run"
        )
    run.amend_attempt(number, {"checkpoint": content})
    return content


def content_of(run: RunDir, about: dict[str, Any]) -> str:
    """The content hash that the encoder `run` starts from has now.

    Raises:
        FileNotFoundError: if it is not there, saying who was to make it.
        ValueError: if it is no encoder.
    """
    file, root = Path(about["checkpoint"]["path"]), run.path.absolute().parents[1]
    if not file.is_file():
        maker = maker_of(file, root)
        raise FileNotFoundError(_missing(file, maker) if maker else f"checkpoint {file} does not exist")
    text = run.config.read_text(encoding="utf-8")
    config = from_text(config_type(about["stage"], about["config"]), text, str(run.config))
    partial = getattr(config, "allow_partial", False)
    return file_hash(file, root, allow_partial=partial, role=role_of(about["stage"]))


def _missing(file: Path, maker: tuple[RunDir, int | None]) -> str:
    run, epoch = maker
    state = run.state()
    if epoch is not None and state == "done":
        return (
            f"{run.path} kept no encoder of epoch {epoch}: pretrained with keep_encoder_every={epoch}, it keeps one "
            f"(at an epoch it has reached)"
        )
    return f"{run.path} has not made {file.name} (it is {state}); {to_make_it(run, state)}"


def to_make_it(run: RunDir, state: str) -> str:
    """What to do for the encoder that a pretraining in this state lacks."""
    place = shlex.quote(str(run.path))
    if state == "done":
        return f"the file was removed since: `mimbench retry --anew {place}` makes it again"
    return f"`mimbench run {place}` goes on with it"
