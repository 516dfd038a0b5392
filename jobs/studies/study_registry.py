"""Record the runs submitted under a study's name, so that runs no longer in the study can be found.

    <root>/.mimbench/studies/<name>.json      {"study": name, "runs": {"cls/linear-1a2b3c4d5e": label, ...}}

A run removed from its study stays here until it is pruned. One run may belong to several studies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.nearest import did_you_mean
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.lock import lock


def members(root: Path, study: str) -> dict[str, str]:
    """Return the runs submitted under this name: directory under `root` -> label."""
    runs: dict[str, str] = _read(_file(root, study)).get("runs", {})
    return runs


def studies(root: Path) -> dict[str, dict[str, str]]:
    """Return the members of every study submitted under `root`."""
    found = (_read(file) for file in sorted((root / ".mimbench" / "studies").glob("*.json")))
    return {content["study"]: content.get("runs", {}) for content in found if "study" in content}


def must_be_known(root: Path, study: str) -> None:
    """Check that runs were submitted under this name.

    Raises:
        ValueError: if not, listing the known studies.
    """
    if study not in (listed := studies(root)):
        known = ", ".join(listed) or "none yet"
        hint = did_you_mean(study, listed, f"studies with runs: {known}")
        raise ValueError(f"study {study!r} has no runs under {root.absolute()}; {hint}")


def add_members(root: Path, study: str, runs: Mapping[RunDir, str]) -> None:
    """Record `runs` as members of `study`, each with its label.

    Raises:
        OSError: if the file cannot be written.
    """
    new = {directory_name(run): label for run, label in runs.items()}
    known = members(root, study)
    if new.items() <= known.items():
        return
    with lock(root / ".mimbench" / "studies.lock"):
        write_json(_file(root, study), {"study": study, "runs": {**members(root, study), **new}})


def forget(root: Path, study: str, names: set[str]) -> None:
    """Remove runs from the list of `study`; their directories stay.

    Raises:
        OSError: if the file cannot be written.
    """
    with lock(root / ".mimbench" / "studies.lock"):
        left = {name: label for name, label in members(root, study).items() if name not in names}
        write_json(_file(root, study), {"study": study, "runs": left})


def directory_name(run: RunDir) -> str:
    """`stage/recipe-identity`."""
    return f"{run.path.parent.name}/{run.path.name}"


def _file(root: Path, study: str) -> Path:
    return root / ".mimbench" / "studies" / f"{quote(study, safe=' ,')}.json"


def _read(file: Path) -> dict[str, Any]:
    """Return the content; empty if the file is missing or damaged, because the next submit writes it again."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
