"""The origin of the encoder a run starts from: another run, known by its identity before it is done, or a file.

    pretrain/crossmae-1a2b3c4d5e  ->  "1a2b3c4d5e", or "1a2b3c4d5e@100" of its encoder after 100 epochs

A run that starts from another's encoder is named by that run's identity, so that a plan can name every directory.
The weights it actually used are recorded when it starts; if the encoder was made again since, its result is stale.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.backbones.checkpoints.info import recorded
from mimbench.backbones.checkpoints.location import Role, user_code
from mimbench.backbones.content import content_hash
from mimbench.engine.run.config import from_text
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.hashes import file_hash, file_hashes
from mimbench.jobs.runs.recipes import config_type
from mimbench.jobs.runs.tasks import role_of


class Source(NamedTuple):
    """The encoder that a run starts from."""

    path: Path  # absolute; `?copy=NAME` at the end selects one of several copies in a file
    hash: str | None  # of the content; None if another run makes the encoder
    run: str | None  # identity of the run that makes it, with `@EPOCH` for an intermediate encoder
    former: str | None = None  # what represented it in the identities of earlier releases

    @property
    def key(self) -> str:
        """Return the text that represents it in the identity of the run."""
        return f"run:{self.run}" if self.run else str(self.hash)

    def about(self) -> dict[str, Any]:
        """Return it in the form of `run.json`."""
        return {"path": str(self.path), "hash": self.hash, "run": self.run}


def made_by(run: RunDir, identity: str, epoch: int | None = None, former: str | None = None) -> Source:
    """Return the encoder made by `run`: the last one, or the one after `epoch` epochs.

    `identity` is the run's, `former` the one that earlier releases gave it.
    """
    file = run.encoder if epoch is None else run.encoder_at(epoch)
    after = "" if epoch is None else f"@{epoch}"
    return Source(file.absolute(), None, f"{identity}{after}", f"run:{former or identity}{after}")


def source_of(file: Path, root: Path, stage: str, allow_partial: bool, role: Role | None = None) -> Source:
    """Return the existing `file` as the source of a run of `stage`: an encoder of a run under `root`, or a plain file.

    Raises:
        ValueError: if the file is not a checkpoint, or the run does not accept it.
    """
    maker = maker_of(file, root)
    if maker is not None:
        run, epoch = maker
        return made_by(run, str(run.read_about()["identity"]), epoch)
    role = role or role_of(stage)
    hashes = file_hashes(file, root, allow_partial=allow_partial, role=role)
    return Source(file, hashes.content, None, hashes.tensors)


def maker_of(file: Path, root: Path) -> tuple[RunDir, int | None] | None:
    """Return the run under `root` that made the encoder `file`, and the epoch; None for any other file."""
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
    """Return the content hash of the checkpoint of `run` and record it with start `number`; None from scratch.

    Raises:
        FileNotFoundError: if it does not exist, naming the run that makes it.
        ValueError: if it is not a checkpoint, or is user code that has changed since the run was created.
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
            f"{checkpoint['path']} has changed since {run.path} was created for its former content; "
            f"run {about['recipe']} with this checkpoint again to create a new run"
        )
    run.amend_attempt(number, {"checkpoint": content})
    return content


def encoder_taken(run: RunDir, config: Any) -> dict[str, Any]:
    """Return what `result.json` says of the encoder that `run` started from: mean, heads, activation, what was assumed.

    Empty from scratch, and for what is no file of an encoder: user code, a whole detector, another network.
    """
    about = run.read_about()
    checkpoint = about.get("checkpoint")
    if not checkpoint or user_code(checkpoint["path"]) is not None:
        return {}
    from mimbench.backbones.weights import open_weights  # imports torch; the run has opened this file already

    role = getattr(config, "takes", None) or role_of(about["stage"])
    try:
        found = open_weights(checkpoint["path"], role, allow_partial=getattr(config, "allow_partial", False))
        return recorded(found.info) if found.holds_encoder else {}
    except (ValueError, OSError):  # the run has ended well, so nothing may go wrong here
        return {}


def content_of(run: RunDir, about: dict[str, Any]) -> str:
    """Return the current content hash of the encoder that `run` starts from.

    Raises:
        FileNotFoundError: if it does not exist, naming the run that makes it.
        ValueError: if it is not an encoder.
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
            f"{run.path} has no encoder of epoch {epoch}; pretrain with keep_encoder_every={epoch} to keep one "
            f"when the run reaches that epoch"
        )
    return f"{run.path} (state: {state}) has not written {file.name}; {to_make_it(run, state)}"


def to_make_it(run: RunDir, state: str) -> str:
    """Return the advice that makes a pretraining in this state write its encoder."""
    place = shlex.quote(str(run.path))
    if state == "done":
        return f"the file was removed; `mimbench retry --anew {place}` makes it again"
    return f"`mimbench run {place}` resumes that run"
