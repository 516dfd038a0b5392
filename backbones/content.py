"""The content hash of a file: what names the input checkpoint of a run, wherever the file lies."""

from __future__ import annotations

import hashlib
from pathlib import Path


def content_hash(path: str | Path) -> str:
    """The sha256 of the file at `path`, in hexadecimal.

    Raises:
        FileNotFoundError: if there is none.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {file} does not exist")
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
