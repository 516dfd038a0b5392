"""Find runs by name: `find`, `find_all`, `path_of`.

    find("linear_vitb-3f", root)       # the run whose directory's name begins so, if that is one run

A run is named by its directory, by `stage/recipe-identity` or the beginning of it (with or without `stage/`), by its
identity or the beginning of that (four characters or more), or by its label in a study. A whole recipe means its runs
and not those of a recipe with a longer name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.studies.study_registry import directory_name, members, must_be_known, studies

SHORTEST_ID = 4  # characters of an identity that name a run


def find(name: str, root: Path) -> RunDir:
    """Return the run called `name`.

    Raises:
        ValueError: if no run or several runs match.
    """
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return RunDir(path)
    known = {directory_name(RunDir(file.parent)): RunDir(file.parent) for file in root.glob("*/*/run.json")}
    if name in known:
        return known[name]
    found = [full for full in known if full.startswith(name) or full.partition("/")[2].startswith(name)]
    found = [full for full in found if name in _without_identity(full)] or found
    if not found and len(name) >= SHORTEST_ID:
        found = [full for full in known if full.rpartition("-")[2].startswith(name)]
    if not found:
        labels = {full for runs in studies(root).values() for full, label in runs.items() if label == name}
        found = sorted(labels & known.keys())
    if len(found) == 1:
        return known[found[0]]
    if found:
        shown = ", ".join(sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(f"{name!r} matches {len(found)} runs: {shown}")
    raise ValueError(f"no run under {root.absolute()} is called {name!r}; {_nearest(name, known)}")


def _without_identity(full: str) -> tuple[str, str]:
    """Return the name of a run without its identity, with and without the stage."""
    recipe = full.rpartition("-")[0]
    return recipe, recipe.partition("/")[2]


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return advice: the run with the nearest name, or where the names are listed."""
    full = {text: one for one in known for text in (one, one.partition("/")[2])}
    near = difflib.get_close_matches(name, full, n=1)
    return f"did you mean {full[near[0]]}?" if near else "`mimbench status` lists them"


def path_of(name: str, root: Path) -> Path:
    """Return `name` as a path if it exists, else the directory of the run called `name`.

    Raises:
        ValueError: if neither exists, or several runs match.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        return find(name, root).path
    except ValueError as error:
        raise ValueError(f"{name} does not exist, and {error}") from None


def find_all(names: Sequence[str], study: str | None, root: Path) -> list[RunDir]:
    """Return the runs called `names`, or all runs of a study.

    Raises:
        ValueError: if a run or the study does not exist, or neither is given.
    """
    if study is not None:
        must_be_known(root, study)
        listed = [RunDir(root / name) for name in members(root, study)]
        return [run for run in listed if run.about.exists()]
    if not names:
        raise ValueError("no run is named; name runs, or a study with --study NAME")
    return [find(name, root) for name in names]
