"""The content of the data set of a run: its fingerprint, which is part of the run's identity.

    contents = Contents(root)               # of all runs of one plan: each data set is looked at once
    contents.of(config, stage).fingerprint

A data set that is not on this machine (a login node) counts as it was when a command with this root last read it, from
`<root>/.mimbench/data.json`; that file is only a cache. Without it the fingerprint is None: then the name of the data
set counts, so a plan cannot recognise finished runs. No run is created without the data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.engine.data.content import Part, fingerprint
from mimbench.engine.data.datasets import HANDWRITTEN, is_built_in, locate
from mimbench.engine.data.splits import HANDWRITTEN_VERSION
from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.bar import working
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.task import Reads
from mimbench.jobs.runs.tasks import known

log = logging.getLogger(__name__)

LISTS = (
    ".json",
    ".txt",
    ".csv",
    ".tar",
    ".zip",
)  # files that count in data sets of tasks that do not say what they read


class DataContent(NamedTuple):
    """What is known of the files that a run reads."""

    fingerprint: str | None  # None: the data set is not here, and no run under this root has looked at it
    reads: str  # "train and val images"
    form: str  # "folders", "files" or "both": other forms of the same images have other fingerprints
    seen: float | None = None  # when it was last here, in seconds since 1970; None: it is here

    @property
    def missing(self) -> bool:
        """Whether the data set is not on this machine."""
        return self.fingerprint is None or self.seen is not None

    def about(self) -> dict[str, Any]:
        """Return it in the form of `run.json`."""
        return {"fingerprint": self.fingerprint, "reads": self.reads, "form": self.form}


class Contents:
    """The data sets that the runs under a root read. Files are looked at once for each object, so do not keep it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[tuple[str, str, str], DataContent] = {}

    def of(self, config: Any, stage: str) -> DataContent:
        """Return the content of the data that a run of `config` reads.

        Raises:
            OSError: if a file cannot be read.
        """
        data, subset = str(config.data), str(getattr(config, "subset", None) or "")
        reads = _reads(config, stage)
        key = data, reads.what, subset
        if key not in self._found:
            self._found[key] = self._look(data, reads, subset)
        return self._found[key]

    def _look(self, data: str, reads: Reads, subset: str) -> DataContent:
        chosen = [Part("subset", Path(subset).parent, (Path(subset).name,))] if subset else []
        if is_built_in(data):
            text = f"{HANDWRITTEN} {HANDWRITTEN_VERSION}"
            return DataContent(_with_subset(text, chosen), reads.what, "folders")
        try:
            parts = list(reads.parts(locate(data)))
        except FileNotFoundError:
            return self._remembered(data, reads, chosen)
        with working(f"reading the listing of {data}"):
            found = DataContent(fingerprint(parts), reads.what, _form(parts))
        self._remember(data, found)
        return found._replace(fingerprint=_with_subset(str(found.fingerprint), chosen))

    @property
    def _file(self) -> Path:
        return self.root / ".mimbench" / "data.json"

    def _remember(self, data: str, found: DataContent) -> None:
        """Write down what the data set holds now, unless that is known."""
        known_ones = _read(self._file)
        said = known_ones.get(f"{data}|{found.reads}", {})
        if said.get("fingerprint") == found.fingerprint or not self.root.is_dir():
            return
        entry = {"fingerprint": found.fingerprint, "form": found.form, "seen": time.time()}
        with suppress(OSError):  # a full disk loses the cache, not the answer
            write_json(self._file, {**known_ones, f"{data}|{found.reads}": entry})

    def _remembered(self, data: str, reads: Reads, chosen: list[Part]) -> DataContent:
        said = _read(self._file).get(f"{data}|{reads.what}")
        if said is None:
            return DataContent(None, reads.what, "")
        text = _with_subset(str(said["fingerprint"]), chosen)
        return DataContent(text, reads.what, str(said["form"]), float(said["seen"]))


def changed(run: RunDir, config: Any) -> str:
    """Return how the data of a run differ from those it was created for; "" if they do not, or nobody can tell.

    Data in another form (tars instead of folders) are not compared: their files differ even if the images do not.
    """
    about = run.read_about()
    created_for = about.get("data") or {}
    if not created_for.get("fingerprint"):
        return ""
    now = Contents(run.path.absolute().parents[1]).of(config, str(about["stage"]))
    if now.seen is not None or now.fingerprint in (None, created_for["fingerprint"]) or now.form != created_for["form"]:
        return ""
    return (
        f"the files of data={config.data} ({now.reads}) have changed since {run.path} was created "
        f"(fingerprint {created_for['fingerprint'][:10]}, now {str(now.fingerprint)[:10]})"
    )


def require_same_data(run: RunDir, config: Any) -> None:
    """Check that the data are those the run was created for. Of a run of an earlier release nobody can tell.

    A change after a start that failed at an image is taken as the repair that its message asked for, and logged.

    Raises:
        ValueError: if they have changed, with the command that makes a run of the new data.
        OSError: if a file cannot be read.
    """
    if "data" not in run.read_about():
        log.info("an earlier mimbench created this run and did not record its data, so changes to them are not noticed")
    elif what := changed(run, config):
        if image := _failed_at(run):
            log.warning("%s; the run goes on, because its last start failed at %s", what, image)
            return
        raise ValueError(f"{what}; restore them, or {again(run, config)} makes a run of the new data")


def _failed_at(run: RunDir) -> str | None:
    """Return the image at which the last ended start failed, if any."""
    ended = [attempt for attempt in run.attempts() if attempt["state"] != "running"]
    return ended[-1].get("image") if ended else None


def again(run: RunDir, config: Any) -> str:
    """Return the command that creates a run like `run` for the present data."""
    return f"`mimbench run {shlex.quote(str(run.path))} {shlex.quote(f'data={config.data}')}`"


def _reads(config: Any, stage: str) -> Reads:
    task = known(stage)
    return task.reads(config) if task is not None and task.reads is not None else Reads("all files", _everything)


def _everything(root: Path) -> Iterator[Part]:
    """Yield what a task may read that does not say what it reads: images, and lists at the top and one folder below."""
    yield Part("images", root)
    found = [file for pattern in ("*", "*/*") for file in root.glob(pattern) if file.suffix.lower() in LISTS]
    yield Part("lists", root, tuple(sorted(str(file.relative_to(root)) for file in found if file.is_file())))


def _form(parts: list[Part]) -> str:
    folders = any(part.is_tree and part.folder.is_dir() for part in parts)
    archives = any("archive" in part.name or part.name == "shards" for part in parts)
    return "both" if folders and archives else "files" if archives else "folders"


def _with_subset(text: str, chosen: list[Part]) -> str:
    """Return the fingerprint of the data and of the list that chooses from them."""
    if not chosen:
        return text
    return hashlib.sha256(f"{text} {fingerprint(chosen)}".encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
