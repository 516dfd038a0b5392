"""Data sets by name, and what a check of one has to say.

    mimbench data add imagenet /data/imagenet     # a line in datasets.toml
    MIMBENCH_DATA_IMAGENET=/scratch/imagenet      # for one shell or one job; goes before the file
    data=imagenet   data=/data/imagenet           # in a recipe or on the command line

A name is looked for in the environment, then in `$MIMBENCH_HOME/datasets.toml` (default `~/.config/mimbench`), then
among the data sets the project brings along; what is none of these is a path. There is one of the last kind,
`handwritten`, written to the cache (`$MIMBENCH_HOME`, or `$XDG_CACHE_HOME/mimbench`, default `~/.cache/mimbench`) when
it is first asked for.

Directories hold a data set as ImageNet and COCO lay theirs out (`image_root`, `coco_root`), or another of the layouts
of engine/data/layouts/. One that has both views keeps them in its subfolders `images/` and `coco/`, as `handwritten`
does. Shards may be named one by one: `data='/data/in-{train,val}-{000..099}.tar'`, or several of these joined by `::`.

Nothing heavy is imported here: the command line reads this file before it knows whether it will do any work.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mimbench.engine.run.atomic import write_text

log = logging.getLogger(__name__)

HANDWRITTEN = "handwritten"
HANDWRITTEN_VERSION = 3  # names the folder in the cache: raise it when the generator writes other files
VARIABLE = "MIMBENCH_DATA_"  # and the name: says where a data set is
SHARD_LISTS = "::"  # between lists of shards, as WebDataset has it
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Split = Literal["train", "val"]
Severity = Literal["error", "warning", "note"]


# ------------------------------------------------------------------------------------------------- names and paths


def settings_file() -> Path:
    """Where names of data sets are kept."""
    return Path(os.environ.get("MIMBENCH_HOME") or "~/.config/mimbench").expanduser() / "datasets.toml"


def cache_directory() -> Path:
    """Where generated data sets are kept."""
    if home := os.environ.get("MIMBENCH_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mimbench"


def environment_variable(name: str) -> str:
    """The environment variable that says where data set `name` is."""
    return VARIABLE + name.upper().replace("-", "_")


def is_named(text: str) -> bool:
    """Whether a data set goes by this name; else it is a path."""
    return text in listing() or bool(os.environ.get(environment_variable(text)))


def listing() -> dict[str, Path]:
    """Every name and its path, alphabetically; `handwritten` is listed whether or not it has been written yet.

    A name that the environment alone gives is listed in lower case.

    Raises:
        ValueError: if the file of names is not TOML of the form `name = "path"`.
    """
    named = {HANDWRITTEN: _handwritten_directory(), **_read_names()}
    known = {environment_variable(name): name for name in named}
    for variable, path in os.environ.items():
        if path and variable.startswith(VARIABLE):
            named[known.get(variable, variable.removeprefix(VARIABLE).lower())] = Path(path).expanduser()
    return dict(sorted(named.items()))


def add(name: str, path: str | Path) -> Path:
    """Remember `path` as data set `name` (an earlier path is replaced) and return it made absolute.

    Raises:
        ValueError: for a name that cannot be one, or that the project keeps for itself.
        FileNotFoundError: if `path` is not a directory.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a data set: use letters, digits, - and _")
    if name == HANDWRITTEN:
        raise ValueError(f"{HANDWRITTEN!r} is the data set mimbench brings along; choose another name")
    directory = Path(path).expanduser().resolve()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory, so it cannot be data set {name!r}")
    names = dict(sorted({**_read_names(), name: directory}.items()))
    write_text(settings_file(), "".join(f"{key} = {json.dumps(str(value))}\n" for key, value in names.items()))
    return directory


def locate(name_or_path: str | Path) -> Path:
    """The directory of a data set given by name or path; `handwritten` is written first if need be.

    Raises:
        FileNotFoundError: for a name or path that leads nowhere; the nearest name is offered.
        ValueError: if the file of names cannot be read.
    """
    name = str(name_or_path)
    variable = environment_variable(name)
    if NAME.fullmatch(name) and os.environ.get(variable):
        return _existing(Path(os.environ[variable]).expanduser(), f"{variable} says data set {name!r} is there")
    names = _read_names()
    if name in names:
        return _existing(names[name], f"{settings_file()} says data set {name!r} is there")
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
    """Whether a data set is there, or will be written when it is first used; nothing is written."""
    if str(name_or_path) == HANDWRITTEN:
        return True
    try:
        locate(name_or_path)
    except FileNotFoundError:
        return False
    return True


def is_pattern(name: str | Path) -> bool:
    """Whether this stands for shards: tars with {000..099} or {train,val} in their names, or joined by `::`."""
    return str(name).endswith(".tar") and ("{" in str(name) or SHARD_LISTS in str(name))


def shards_of(pattern: str | Path) -> list[Path]:
    """The tars that a pattern stands for, in its order.

    Raises:
        FileNotFoundError: naming the first that is not there.
        ValueError: if a brace holds neither a range nor a choice.
    """
    tars = [Path(name) for part in str(pattern).split(SHARD_LISTS) for name in _expanded(part)]
    for tar in tars:
        if not tar.is_file():
            raise FileNotFoundError(f"{tar}, the {tars.index(tar) + 1}. of the {len(tars)} shards named, is not there")
    return tars


def _expanded(text: str) -> list[str]:
    """What a shell makes of braces: {08..11} counts, with as many digits; {train,val} chooses."""
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
        raise ValueError(f"{text}: braces hold a range of numbers, as {{000..099}}, or a choice, as {{train,val}}")
    return [before + choice + end for choice in choices for end in _expanded(after)]


def _existing(path: Path, who: str) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory, but {who}; correct it with `mimbench data add`")
    return path


def _nowhere(name: str, path: Path) -> str:
    if path.is_file():
        return f"data={name} is a file; name the directory of the data set"
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
        with one_at_a_time(directory.with_suffix(".lock")):
            if not directory.is_dir():
                from mimbench.engine.data.handwritten import make_handwritten

                make_handwritten(directory)
    return directory


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold `lock`, waiting while another process has it: two runs started together write the data once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that is writing %s", lock.with_suffix(""))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------- layouts


def image_root(directory: Path) -> Path:
    """The ImageFolder inside a data set: its subfolder `images/` if that is split, else the directory itself."""
    inner = directory / "images"
    return inner if any((inner / split).is_dir() for split in ("train", "val")) else directory


def coco_root(directory: Path) -> Path:
    """The COCO data set inside a data set: its subfolder `coco/` if that has annotations, else the directory itself."""
    inner = directory / "coco"
    return inner if (inner / "annotations").is_dir() else directory


@dataclass(frozen=True)
class CocoFiles:
    """Where one split of a COCO data set is."""

    annotations: Path
    images: Path  # the folder that the annotations' file names are in


# the annotation file of a split, and the folders its images may be in
COCO_LAYOUTS = {
    "annotations/instances_{split}2017.json": ("{split}2017", "images/{split}2017"),  # COCO itself
    "annotations/instances_{split}.json": ("images/{split}", "{split}", "images"),  # as CVAT and converters write it
    "annotations/{split}.json": ("images/{split}", "{split}", "images"),
    "{split}/_annotations.coco.json": ("{split}",),  # Roboflow
    "{split}/labels.json": ("{split}/data",),  # FiftyOne
}
COCO_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}


def coco_files(directory: Path, split: Split) -> CocoFiles:
    """The annotation file and image folder of a split, in the first of `COCO_LAYOUTS` that is there.

    As COCO 2017 has them if none is; the files are not opened.
    """
    root = coco_root(directory)
    for pattern, folders in COCO_LAYOUTS.items():
        for name in COCO_SPLITS[split]:
            if (file := root / pattern.format(split=name)).is_file():
                places = [root / folder.format(split=name) for folder in folders]
                return CocoFiles(file, next((place for place in places if place.is_dir()), places[0]))
    return CocoFiles(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017")


# ---------------------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a data set (`error`), likely wrong (`warning`), or good to know (`note`)."""

    severity: Severity
    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}" if self.remedy else f"{self.file}: {self.what}"


class UnfitError(ValueError):
    """A data set that no run can use: an error among the findings, in one line."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding

    def __reduce__(self) -> tuple[type[UnfitError], tuple[Finding]]:
        return UnfitError, (self.finding,)


def unfit(file: Path, what: str, remedy: str) -> UnfitError:
    """The exception for what is wrong with `file`, a file or a directory."""
    return UnfitError(Finding("error", str(file), what, remedy))


@dataclass
class Report:
    """What a check of a data set found. `facts` counts what is there, e.g. {"train images": 80}."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a run on this data would stop, or be wrong."""
        return any(finding.severity == "error" for finding in self.findings)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Add findings in the order they come."""
        self.findings.extend(findings)


def require(findings: Iterable[Finding]) -> None:
    """Stop at the first error among `findings`; what comes after it is not computed.

    Raises:
        UnfitError: (a ValueError) the first error, in one line.
    """
    for finding in findings:
        if finding.severity == "error":
            raise UnfitError(finding)
