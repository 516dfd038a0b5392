"""Records of all runs under a root, read once for the table and the report.

    <root>/<stage>/<recipe>-<identity>/run.json ...

A directory with damaged files is a record too, with the reason in `problem`: one bad run must not hide the others.
Reads only; does not import torch.
"""

from __future__ import annotations

import logging
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mimbench.engine.data.shared_images import measured_on
from mimbench.engine.run.config import leaves
from mimbench.engine.run.fields import under_current_names, with_later_fields
from mimbench.engine.run.result import SCHEMA, with_current_facts
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.recipes import config_type

log = logging.getLogger(__name__)

GROUPS = "groups"  # in run.json: {"speed": [keys], "plumbing": [keys]}, the fields that do not change the result
_COMMENTS = ("  # speed", "  # plumbing")  # their marks in config.txt; read only if an older run.json has no groups


@dataclass(frozen=True)
class Record:
    """One run, as read from its files."""

    run: RunDir
    about: dict[str, Any]
    science: dict[str, Any]  # dotted key -> value, of the fields that change the result
    result: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    state: str  # engine.run.rundir.State, or "damaged"
    problem: str = ""  # of a damaged run
    content: str = ""  # of the data: begin of its fingerprint, where runs under one root read several contents

    @property
    def stage(self) -> str:
        """Return the name of the run's task."""
        return str(self.about.get("stage", ""))

    @property
    def recipe(self) -> str:
        """Return the recipe's name without the stage."""
        return str(self.about.get("recipe", self.run.path.name)).rpartition("/")[2]

    @property
    def name(self) -> str:
        """Return the directory as `<stage>/<recipe>-<identity>`."""
        return f"{self.run.path.parent.name}/{self.run.path.name}"

    @property
    def started(self) -> float:
        """Return the first start in seconds since 1970; infinity for a run that was never started."""
        return min((float(attempt["started"]) for attempt in self.attempts), default=math.inf)

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """Return path, content hash and family of the encoder the run starts from; None from scratch."""
        return (self.result or self.about).get("checkpoint")

    @property
    def data_set(self) -> str:
        """Return the data set as named in the config; of a path, the last part."""
        return str(self.science.get("data", "")).rstrip("/").rpartition("/")[2]

    @property
    def data(self) -> str:
        """Return the data set for people, with what sets its numbers apart: other content, or training images."""
        notes = [f"files {self.content}" if self.content else "", self.measured_on]
        told = ", ".join(note for note in notes if note)
        return f"{self.data_set} ({told})" if told else self.data_set

    @property
    def measured_on(self) -> str:
        """Return which of the validation images are training images, if it is known that some are; else ""."""
        return measured_on(self.result or {})

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Return the final numeric metrics; a NaN is left out and logged."""
        found = (self.result or {}).get("metrics", {})
        numbers = {name: float(value) for name, value in found.items() if math.isfinite(value)}
        for name in found.keys() - numbers.keys():
            log.warning("%s: %s is %s and is left out", self.run.path, name, found[name])
        return numbers


def read(root: Path) -> list[Record]:
    """Return every run under `root`, by time of the first start; none if `root` does not exist."""
    records = [record_of(RunDir(file.parent)) for file in sorted(root.glob("*/*/run.json"))]
    return list(_told_apart(sorted(records, key=lambda record: record.started)))


def _told_apart(found: Iterable[Record]) -> Iterator[Record]:
    """Yield the records; where the files behind a data set have changed, those of later contents say which they read.

    Runs of earlier releases recorded no content and count as the first.
    """
    first: dict[tuple[str, str], str] = {}
    for record in found:
        data = record.about.get("data") or {}
        content, key = data.get("fingerprint"), (str(record.science.get("data")), str(data.get("reads")))
        if isinstance(content, str) and first.setdefault(key, content) != content:
            yield replace(record, content=content[:6])
        else:
            yield record


def record_of(run: RunDir) -> Record:
    """Return the record of one run directory."""
    about: dict[str, Any] = {}
    try:
        about = run.read_about()
        science = science_of(run.config.read_text(encoding="utf-8"), about)
        result = run.read_result()
        if result is not None and result.get("schema") != SCHEMA:
            raise ValueError(f"its result.json has schema {result.get('schema')}, but this mimbench reads {SCHEMA}")
        result = with_current_facts(result) if result else None
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
        about: content of `run.json`; without `groups` (runs made before they were written) the comments of the text
            mark the fields that are not science. Its config class has the former names of fields.

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
    """Return the class of a run's config; None if another version of mimbench made the run."""
    try:
        return config_type(str(about["stage"]), str(about["config"]))
    except (KeyError, ValueError):
        return None


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested form of flat settings, the inverse of `_flat`."""
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
