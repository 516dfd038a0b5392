"""What the directories of a runs root say, read once, for the table and the report.

    <root>/<stage>/<recipe>-<identity>/run.json ...

A directory whose files are damaged is a record too, with the reason in `problem`: one bad run must not hide the others.
Reads only; starts without torch.
"""

from __future__ import annotations

import logging
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mimbench.engine.run.config import leaves
from mimbench.engine.run.fields import under_current_names, with_later_fields
from mimbench.engine.run.result import SCHEMA
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.recipes import config_type

log = logging.getLogger(__name__)

GROUPS = "groups"  # in run.json: {"speed": [keys], "plumbing": [keys]}, the fields that leave a result as it is
_COMMENTS = ("  # speed", "  # plumbing")  # what config.txt says of them; read only where an older run.json does not


@dataclass(frozen=True)
class Record:
    """One run as its files tell it."""

    run: RunDir
    about: dict[str, Any]
    science: dict[str, Any]  # dotted key -> value, of the fields that change the result
    result: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    state: str  # engine.run.rundir.State, or "damaged"
    problem: str = ""  # of a damaged one

    @property
    def stage(self) -> str:
        """The name of its task."""
        return str(self.about.get("stage", ""))

    @property
    def recipe(self) -> str:
        """The recipe's name without its stage."""
        return str(self.about.get("recipe", self.run.path.name)).rpartition("/")[2]

    @property
    def name(self) -> str:
        """The directory, as `<stage>/<recipe>-<identity>`."""
        return f"{self.run.path.parent.name}/{self.run.path.name}"

    @property
    def started(self) -> float:
        """Seconds since 1970 of the first start; infinity for a run that never was started."""
        return min((float(attempt["started"]) for attempt in self.attempts), default=math.inf)

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """Path, content hash and family of the encoder it starts from; None from scratch."""
        return (self.result or self.about).get("checkpoint")

    @property
    def data(self) -> str:
        """The data set as the config names it; of a path, its last part."""
        return str(self.science.get("data", "")).rstrip("/").rpartition("/")[2]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Final metrics that are numbers; a NaN is left out and logged."""
        found = (self.result or {}).get("metrics", {})
        numbers = {name: float(value) for name, value in found.items() if math.isfinite(value)}
        for name in found.keys() - numbers.keys():
            log.warning("%s: %s is %s and is left out", self.run.path, name, found[name])
        return numbers


def read(root: Path) -> list[Record]:
    """Every run under `root`, the first started first; none when `root` does not exist."""
    records = [record_of(RunDir(file.parent)) for file in sorted(root.glob("*/*/run.json"))]
    return sorted(records, key=lambda record: record.started)


def record_of(run: RunDir) -> Record:
    """The record of one run directory."""
    about: dict[str, Any] = {}
    try:
        about = run.read_about()
        science = science_of(run.config.read_text(encoding="utf-8"), about)
        result = run.read_result()
        if result is not None and result.get("schema") != SCHEMA:
            raise ValueError(f"its result.json has schema {result.get('schema')}, this mimbench reads {SCHEMA}")
        return Record(run, about, science, result, run.attempts(), run.state())
    except (ValueError, OSError) as error:
        log.warning("%s is left out: %s", run.path, error)
        return Record(run, about, {}, None, [], "damaged", str(error))


def groups_of(config: Any) -> dict[str, list[str]]:
    """Return the dotted keys of `config` that are not science, by group, as `run.json` holds them under `groups`."""
    groups: dict[str, list[str]] = {"speed": [], "plumbing": []}
    for leaf in leaves(config):
        if leaf.group != "science":
            groups[leaf.group].append(leaf.key)
    return groups


def science_of(text: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the science fields of a `config.txt`, dotted key to value, without building the config.

    Keys of earlier releases are returned under today's names.

    Args:
        text: of the file.
        about: what `run.json` holds; without `groups` (runs made before they were written) the comments of the text say
            which fields are science. The config class that it names says which fields had other names.

    Raises:
        ValueError: if the text is not a config.
    """
    groups = about.get(GROUPS)
    if not isinstance(groups, Mapping):
        text = "\n".join(line for line in text.splitlines() if not line.endswith(_COMMENTS))
        groups = {}
    try:
        settings = _flat(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config.txt is not a config file: {error}") from error
    left_out = {key for keys in groups.values() for key in keys}
    science = {key: value for key, value in settings if key not in left_out}
    kind = _kind_of(about)
    if kind is None:
        return science
    return dict(_flat(with_later_fields(kind, under_current_names(kind, _nested(science)))))


def _kind_of(about: Mapping[str, Any]) -> type[Any] | None:
    """The class of a run's config; None of one that another version of mimbench made."""
    try:
        return config_type(str(about["stage"]), str(about["config"]))
    except (KeyError, ValueError):
        return None


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return nested


def _flat(nested: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in nested.items():
        leaves += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return leaves
