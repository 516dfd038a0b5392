"""Snapshots of the code at submission, so that later edits do not affect waiting jobs.

    <root>/.mimbench/code/<tree>/      the packages, as from `git archive`, including uncommitted changes
                                 changes.diff  snapshot.json (written last: without it the snapshot is incomplete)

A snapshot is named by git's hash of its content, so that unchanged code is copied once. It includes untracked files but
not ignored ones. The checkout, its index and its objects are not changed. If mimbench is installed without git, as
from a wheel, the installed package is copied, and the snapshot is named by a hash of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_json

PACKAGE = Path(__file__).parents[2]  # mimbench/, with links to its subpackages
PARTS = ("mimbench", *sorted(link.name for link in PACKAGE.iterdir() if link.is_symlink()), "pyproject.toml")
MARKER = "snapshot.json"
TOP = Path(__file__).parents[3]


def snapshot(root: Path, top: Path = TOP) -> dict[str, Any]:
    """Copy the code at `top` to the runs root, unless it is already there; return its description.

    The keys: `snapshot` (a path), `version`, `tree`; in a checkout also `commit`, `dirty`.

    Raises:
        OSError: if the copy cannot be written; an incomplete copy is never used.
    """
    known = {"version": version("mimbench")}
    if (top / MARKER).is_file():  # inside a job: its code is already a snapshot
        return {**json.loads((top / MARKER).read_text(encoding="utf-8")), "snapshot": str(top)}
    places = _places(top)
    if places is None:
        return _of_installed(root, top, known)
    commit, *files = places
    with tempfile.TemporaryDirectory(prefix="mimbench-snapshot-") as scratch:
        own = _own_index(top, Path(scratch), *files)
        tree = _git(top, "write-tree", **own).strip()
        diff = _git(top, "diff", "--cached", "--binary", "HEAD", "--", *PARTS, **own)
        about = {**known, "commit": commit, "tree": tree, "dirty": bool(diff)}
        place = root.absolute() / ".mimbench" / "code" / tree[:16]
        if not (place / MARKER).is_file():
            _write(top, place, about, diff, own)
    return {**about, "snapshot": str(place)}


def _of_installed(root: Path, top: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Copy the package installed in `top`, unless that copy exists; return its description."""
    names = sorted(path for path in (top / "mimbench").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    content = hashlib.sha256()
    for name in names:
        content.update(f"{name.relative_to(top).as_posix()}\0{name.stat().st_size}\0".encode() + name.read_bytes())
    about = {**known, "tree": content.hexdigest()[:40]}
    place = root.absolute() / ".mimbench" / "code" / about["tree"][:16]
    if not (place / MARKER).is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as made:
            new = Path(made) / "code"
            shutil.copytree(top / "mimbench", new / "mimbench", ignore=shutil.ignore_patterns("__pycache__"))
            _put(new, place, about)
    return {**about, "snapshot": str(place)}


def _places(top: Path) -> list[str] | None:
    """Return the commit, the index and the objects of the checkout at `top`; None if it is not a checkout."""
    paths = ("--show-toplevel", "HEAD", "--git-path", "index", "--git-path", "objects")
    try:
        found = _git(top, "rev-parse", "--path-format=absolute", *paths).splitlines()
    except OSError:
        return None
    return found[1:] if Path(found[0]).resolve() == top.resolve() else None


def _own_index(top: Path, scratch: Path, index: str, theirs: str) -> dict[str, str]:
    """Return a separate index with the current files, and a separate directory for their objects."""
    objects = scratch / "objects"
    objects.mkdir()
    if Path(index).is_file():
        shutil.copy2(index, scratch / "index")  # so that unchanged files need not be read
    own = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": theirs,
    }
    _git(top, "add", "--all", "--", *[part for part in PARTS if (top / part).exists()], **own)
    return own


def _write(top: Path, place: Path, about: dict[str, Any], diff: str, own: dict[str, str]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as made:
        new = Path(made) / "code"
        new.mkdir()
        archive = Path(own["GIT_INDEX_FILE"]).with_name("code.tar")
        parts = [part for part in PARTS if (top / part).exists()]
        _git(top, "archive", f"--output={archive}", about["tree"], "--", *parts, **own)
        try:
            shutil.unpack_archive(archive, new, "tar", filter="data")
        except OSError as error:  # on a full disk the error does not name the path
            raise OSError(error.errno, error.strerror, str(place)) from error
        (new / "changes.diff").write_text(diff, encoding="utf-8", errors="surrogateescape")
        _put(new, place, about)


def _put(new: Path, place: Path, about: dict[str, Any]) -> None:
    """Complete the copy `new` with its description and rename it to `place`."""
    write_json(new / MARKER, about)
    if place.exists() and not (place / MARKER).is_file():
        shutil.rmtree(place)  # incomplete
    try:
        new.rename(place)
    except OSError:
        if not (place / MARKER).is_file():  # else another shell wrote the same code first
            raise


def _git(directory: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise OSError(
            f"the code at {directory} cannot be copied: {done.stderr.strip() or f'git {arguments[0]} failed'}"
        )
    return done.stdout
