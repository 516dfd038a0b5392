"""Content hashes of checkpoint files, cached under the runs root until a file's size or time changes.

    <root>/.mimbench/hashes.json      {"<path>|<role>|<partial>|2": [[size, time in ns, ...], hash, hash of tensors]}

A large checkpoint takes seconds to hash, and a foreign one needs torch to open; `mimbench plan` does each once. The
file is only a cache: a lost entry is computed again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from mimbench.backbones.content import Hashes, Role, content_hashes, version
from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.bar import working
from mimbench.engine.run.config import SCHEMA


def file_hash(file: Path, root: Path, *, allow_partial: bool = False, role: Role = "encoder") -> str:
    """Return `content_hash` of `file`, from the cache of `root` if the file has not changed.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it holds no encoder that can be used in this role.
    """
    return file_hashes(file, root, allow_partial=allow_partial, role=role).content


def file_hashes(file: Path, root: Path, *, allow_partial: bool = False, role: Role = "encoder") -> Hashes:
    """Return `content_hashes` of `file`, as `file_hash`."""
    stamp = _stamp(file)
    key, cache = f"{file}|{role}|{allow_partial}|{SCHEMA}", root / ".mimbench" / "hashes.json"
    if stamp is None:
        return content_hashes(file, allow_partial=allow_partial, role=role)
    known = _known(cache).get(key)
    if isinstance(known, list) and known[:1] == [stamp] and len(known) == 3:
        return Hashes(str(known[1]), str(known[2]))
    with working(f"reading {file.name.partition('?')[0]}"):
        found = content_hashes(file, allow_partial=allow_partial, role=role)
    if root.is_dir():  # hashing a file does not create a runs root
        with suppress(OSError):  # a full disk loses the cache, not the answer
            write_json(cache, {**_known(cache), key: [stamp, *found]})
    return found


def _stamp(file: Path) -> list[int] | None:
    """Return the state of the file and of a config beside it; None if `file` is not a plain path."""
    path = Path(str(file).partition("?")[0])
    if not path.is_file():
        return None
    size, modified, _, *beside = version(path)  # a file has another inode on another machine
    return [size, modified, *beside]


def _known(cache: Path) -> dict[str, Any]:
    try:
        stat = cache.stat()
    except OSError:
        return {}
    return _read(cache, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(cache: Path, _modified: int, _size: int) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
