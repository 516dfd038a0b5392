"""Data sets by name, and the report of a data set's check.

    mimbench data add imagenet /data/imagenet     # a line in datasets.toml
    MIMBENCH_DATA_IMAGENET=/scratch/imagenet      # for one shell or one job; overrides the file
    data=imagenet   data=/data/imagenet           # in a recipe or on the command line

A name is looked up in the environment, then in `$MIMBENCH_HOME/datasets.toml` (default `~/.config/mimbench`), then
among the built-in data sets; any other text is a path. The only built-in data set is `handwritten`, which is written
to the cache (`$MIMBENCH_HOME`, or `$XDG_CACHE_HOME/mimbench`, default `~/.cache/mimbench`) on its first use.

A directory holds a data set in ImageNet's or COCO's layout (`image_root`, `coco_root`), or in another layout of
engine/data/layouts/. A data set with both views, such as `handwritten`, keeps them in `images/` and `coco/`. Shards are
named by a pattern: `data='/data/in-{train,val}-{000..099}.tar'`, or several patterns joined by `::`.

Imports nothing heavy: every command of the command line imports this file.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mimbench.engine.data import coco_layouts
from mimbench.engine.data.splits import HANDWRITTEN_VERSION
from mimbench.engine.data.splits import Split as Split  # noqa: PLC0414 (others import it from here)
from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.bar import working
from mimbench.engine.run.file_lock import file_lock

HANDWRITTEN = "handwritten"
VARIABLE = "MIMBENCH_DATA_"  # followed by the name of a data set: its path
SHARD_LISTS = "::"  # separates lists of shards, as in WebDataset
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Severity = Literal["error", "warning", "note"]


# ------------------------------------------------------------------------------------------------- names and paths


def settings_file() -> Path:
    """Return the file that stores the names of data sets."""
    return Path(os.environ.get("MIMBENCH_HOME") or "~/.config/mimbench").expanduser() / "datasets.toml"


def cache_directory() -> Path:
    """Return the directory of generated data sets."""
    if home := os.environ.get("MIMBENCH_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mimbench"


def environment_variable(name: str) -> str:
    """Return the environment variable for the path of data set `name`."""
    return VARIABLE + name.upper().replace("-", "_")


def is_named(text: str) -> bool:
    """Return whether `text` is the name of a data set; otherwise it is a path."""
    return text in listing() or bool(os.environ.get(environment_variable(text)))


def is_built_in(name_or_path: str | Path) -> bool:
    """Return whether this is the built-in data set, and not another directory that the environment gives its name."""
    return str(name_or_path) == HANDWRITTEN and not os.environ.get(environment_variable(HANDWRITTEN))


def listing() -> dict[str, Path]:
    """Return every name and its path, alphabetically; `handwritten` is included even before it is written.

    A name that only the environment defines is listed in lower case.

    Raises:
        ValueError: if the file of names is not TOML with lines `name = "path"`.
    """
    named = {HANDWRITTEN: _handwritten_directory(), **_read_names()}
    known = {environment_variable(name): name for name in named}
    for variable, path in os.environ.items():
        if path and variable.startswith(VARIABLE):
            named[known.get(variable, variable.removeprefix(VARIABLE).lower())] = Path(path).expanduser()
    return dict(sorted(named.items()))


def add(name: str, path: str | Path) -> Path:
    """Store `path` as data set `name` (replacing an earlier path) and return the absolute path.

    Raises:
        ValueError: for an invalid or reserved name.
        FileNotFoundError: if `path` is not a directory.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a data set: use letters, digits, - and _")
    if name == HANDWRITTEN:
        raise ValueError(f"{HANDWRITTEN!r} is reserved for mimbench's built-in data set; choose another name")
    directory = Path(path).expanduser().resolve()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory; data set {name!r} must be one")
    names = dict(sorted({**_read_names(), name: directory}.items()))
    write_text(settings_file(), "".join(f"{key} = {json.dumps(str(value))}\n" for key, value in names.items()))
    return directory


def locate(name_or_path: str | Path) -> Path:
    """Return the directory of a data set given by name or path; `handwritten` is written first if it is missing.

    Raises:
        FileNotFoundError: for an unknown name or missing path; the message suggests the nearest name.
        ValueError: if the file of names cannot be read.
    """
    name = str(name_or_path)
    variable = environment_variable(name)
    if NAME.fullmatch(name) and os.environ.get(variable):
        return _existing(Path(os.environ[variable]).expanduser(), f"{variable} names it as data set {name!r}")
    names = _read_names()
    if name in names:
        return _existing(names[name], f"{settings_file()} names it as data set {name!r}")
    if name == HANDWRITTEN:
        return _handwritten()
    if is_pattern(name):
        return Path(
            SHARD_LISTS.join(str(shard.expanduser().absolute()) for shard in map(Path, name.split(SHARD_LISTS)))
        )
    if (directory := Path(name).expanduser()).is_dir():
        return directory
    raise FileNotFoundError(_nowhere(name, directory))


def is_there(name_or_path: str | Path) -> bool:
    """Return whether a data set exists, or will be written on its first use; writes nothing."""
    if str(name_or_path) == HANDWRITTEN:
        return True
    try:
        locate(name_or_path)
    except FileNotFoundError:
        return False
    return True


def is_pattern(name: str | Path) -> bool:
    """Return whether `name` is a pattern of shards: tars with {000..099} or {train,val}, or joined by `::`."""
    return str(name).endswith(".tar") and ("{" in str(name) or SHARD_LISTS in str(name))


def shards_of(pattern: str | Path) -> list[Path]:
    """Return the tars of a pattern, in its order.

    Raises:
        FileNotFoundError: naming the first missing tar.
        ValueError: if a brace holds neither a range nor a choice.
    """
    tars = [Path(name) for part in str(pattern).split(SHARD_LISTS) for name in _expanded(part)]
    for tar in tars:
        if not tar.is_file():
            raise FileNotFoundError(f"{tar} does not exist (shard {tars.index(tar) + 1} of {len(tars)} in the pattern)")
    return tars


def _expanded(text: str) -> list[str]:
    """Return the shell's expansion of braces: {08..11} counts with as many digits; {train,val} is a choice."""
    before, brace, rest = text.partition("{")
    if not brace:
        return [text]
    inside, close, after = rest.partition("}")
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = found.groups()
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    if not close or not choices or (len(choices) == 1 and not found):
        raise ValueError(f"{text}: braces must hold a range like {{000..099}} or a choice like {{train,val}}")
    return [before + choice + end for choice in choices for end in _expanded(after)]


def _existing(path: Path, who: str) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory, but {who}; correct it with `mimbench data add`")
    return path


def _nowhere(name: str, path: Path) -> str:
    if path.is_file():
        return f"data={name} is a file; give the directory of the data set"
    known = listing()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(known)}"
    return f"data={name} is neither a directory nor a known data set; {hint} (`mimbench data add NAME PATH` adds one)"


def _read_names() -> dict[str, Path]:
    file = settings_file()
    if not file.exists():
        return {}
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}; correct or delete it") from None
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f'{file}: {name} must be a path in quotes, as in {name} = "/data/{name}"')
    return {name: Path(value).expanduser() for name, value in values.items()}


# ------------------------------------------------------------------------------------------------------ handwritten


def _handwritten_directory() -> Path:
    return cache_directory() / f"{HANDWRITTEN}-{HANDWRITTEN_VERSION}"


def _handwritten() -> Path:
    directory = _handwritten_directory()
    if not directory.is_dir():
        with file_lock(directory.with_suffix(".lock"), f"writing {directory}"):
            if not directory.is_dir():
                with working(f"writing {HANDWRITTEN}"):
                    from mimbench.engine.data.handwritten import make_handwritten

                    make_handwritten(directory)
    return directory


# ---------------------------------------------------------------------------------------------------------- layouts


def image_root(directory: Path) -> Path:
    """Return the root of a data set's ImageFolder: `images/` if that has splits, else the directory itself."""
    inner = directory / "images"
    return inner if any((inner / split).is_dir() for split in ("train", "val")) else directory


def coco_root(directory: Path) -> Path:
    """Return the root of a data set's COCO view: `coco/` if that has annotations, else the directory itself."""
    inner = directory / "coco"
    return inner if (inner / "annotations").is_dir() else directory


@dataclass(frozen=True)
class CocoFiles:
    """The paths of one split of a COCO data set."""

    annotations: Path
    images: Path  # the folder of the annotations' file names


def coco_files(directory: Path, split: Split) -> CocoFiles:
    """Return the annotation file and image folder of a split, in the first layout of `coco_layouts` that matches.

    If none matches, the paths are COCO 2017's. The files are not opened.
    """
    root = coco_root(directory)
    if (found := coco_layouts.find(root, split)) is not None:
        return CocoFiles(found[0], found[1][0])
    return CocoFiles(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017")


# ---------------------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Finding:
    """One finding about a data set: a fault (`error`), a likely fault (`warning`), or information (`note`)."""

    severity: Severity
    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}" if self.remedy else f"{self.file}: {self.what}"


class UnfitError(ValueError):
    """A data set that no run can use: a finding of severity `error`, in one line."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding

    def __reduce__(self) -> tuple[type[UnfitError], tuple[Finding]]:
        return UnfitError, (self.finding,)


def unfit(file: Path, what: str, remedy: str) -> UnfitError:
    """Return the exception for a fault of `file`, a file or a directory."""
    return UnfitError(Finding("error", str(file), what, remedy))


@dataclass
class Report:
    """The result of a data set's check. `facts` holds counts, e.g. {"train images": 80}."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a run on this data would stop or be wrong."""
        return any(finding.severity == "error" for finding in self.findings)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Append `findings`."""
        self.findings.extend(findings)


def require(findings: Iterable[Finding]) -> None:
    """Raise the first error among `findings`; later findings are not computed.

    Raises:
        UnfitError: (a ValueError) for the first error, in one line.
    """
    for finding in findings:
        if finding.severity == "error":
            raise UnfitError(finding)
