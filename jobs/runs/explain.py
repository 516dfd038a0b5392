"""Show which settings distinguish a run from the run nearest to it.

    mimbench explain linear_vitb-3f                an existing run
    mimbench explain cls/linear_vitb base_lr=0.2   a run that these settings would start or find

Nearest is the run of the same kind with the fewest science keys that differ, of the same recipe if there is a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench.engine.run.config import BY_CONTENT, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.records import science_of
from mimbench.jobs.runs.store import Place
from mimbench.jobs.studies.study_registry import directory_name

_ABSENT = "none"
DATA, SCHEMA = "content of the data", "schema of the identity"
_NEW = "2 (data and encoders count by their content)"
_OLD = "1 (an earlier mimbench: data counted by name, encoders by their tensors alone)"
_EARLIER = (
    "Earlier releases identified a run by the name of its data, so it is unknown whether both read the same files. "
    "Tables and reports show runs of either kind; `mimbench run DIRECTORY` continues an unfinished one, and "
    "`--from NAME=DIRECTORY/encoder.safetensors` starts a study from a finished pretraining."
)


@dataclass(frozen=True)
class Difference:
    """A key with the values of this run and the other."""

    key: str
    here: Any
    there: Any


@dataclass(frozen=True)
class Explanation:
    """A run and its differences from the nearest run."""

    run: RunDir
    exists: bool
    recipe: str
    nearest: RunDir | None
    differences: tuple[Difference, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as JSON."""
        return {
            "run": str(self.run.path),
            "exists": self.exists,
            "recipe": self.recipe,
            "nearest": str(self.nearest.path) if self.nearest else None,
            "differences": [vars(one) for one in self.differences],
        }

    @property
    def text(self) -> str:
        """Return the explanation as text."""
        name = directory_name(self.run)
        begin = f"{name} ({self.recipe}{'' if self.exists else '; not run yet'})"
        if self.nearest is None:
            return f"{begin}: no other run of this kind under this root"
        lines = [f"{begin} differs from {directory_name(self.nearest)} in"]
        lines += [
            f"    {one.key} = {_shown(one.here)}, the other run has {_shown(one.there)}" for one in self.differences
        ]
        keys = {one.key for one in self.differences}
        if keys <= {DATA, SCHEMA}:
            same = f"{begin} has the same settings as {directory_name(self.nearest)}"
            lines = [f"{same}, a run of an older version", *lines[1:]] if SCHEMA in keys or not keys else lines
        if SCHEMA in keys:
            lines.append(_EARLIER)
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def explain_run(run: RunDir, root: Path) -> Explanation:
    """Explain an existing run.

    Raises:
        ValueError: if its files are damaged.
    """
    return _explain(run, run.read_about(), run.config.read_text(encoding="utf-8"), root)


def explain_place(place: Place, root: Path) -> Explanation:
    """Explain the run of a recipe with overrides, whether it exists or not."""
    return _explain(place.run, place.about, to_text(place.config), root)


def _explain(run: RunDir, about: Mapping[str, Any], text: str, root: Path) -> Explanation:
    mine = _settings(about, text)
    best: tuple[tuple[int, bool], RunDir, tuple[Difference, ...]] | None = None
    for other, about_other, theirs in _others(run, about, root):
        found = tuple(_differences(mine, theirs))
        rank = (len(found), about_other.get("recipe") != about["recipe"])
        if best is None or rank < best[0]:
            best = rank, other, found
    nearest, differences = (best[1], best[2]) if best else (None, ())
    return Explanation(run, run.about.exists(), str(about["recipe"]), nearest, differences)


def _others(
    run: RunDir, about: Mapping[str, Any], root: Path
) -> Iterator[tuple[RunDir, Mapping[str, Any], dict[str, Any]]]:
    """Other runs of the same stage and kind of config; damaged ones are skipped."""
    for file in sorted(root.glob(f"{about['stage']}/*/run.json")):
        other = RunDir(file.parent)
        try:
            theirs = other.read_about()
            if other.path.name == run.path.name or theirs.get("config") != about.get("config"):
                continue
            yield other, theirs, _settings(theirs, other.config.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue


def _settings(about: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the settings of the identity; the checkpoint counts by the run that made it, or by its content."""
    settings = science_of(text, about)
    checkpoint = about.get("checkpoint")
    content = (about.get("data") or {}).get("fingerprint")
    settings[DATA] = content or "not recorded"
    settings[SCHEMA] = _NEW if about.get("schema", 1) > 1 else _OLD
    settings["checkpoint"] = _ABSENT
    if checkpoint:
        maker = f"the encoder of run {checkpoint['run']}" if checkpoint.get("run") else None
        settings["checkpoint"] = maker or f"{checkpoint['path']} ({str(checkpoint['hash'])[:10]})"
    return settings


def _path(checkpoint: Any) -> str:
    return str(checkpoint).rpartition(" (")[0]


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Difference]:
    for key in {**mine, **theirs}:
        here, there = mine.get(key, _ABSENT), theirs.get(key, _ABSENT)
        same_content = key == "checkpoint" and str(here)[-12:] == str(there)[-12:] and str(here).endswith(")")
        same_content |= key == "checkpoint" and mine[SCHEMA] != theirs[SCHEMA] and _path(here) == _path(there)
        same_content |= key in BY_CONTENT and mine[DATA] == theirs[DATA] != "not recorded"
        if here != there and not same_content:
            yield Difference(key, here, there)
