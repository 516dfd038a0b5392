"""What people write for a checkpoint: a path, a `file://` URL, either with `?copy=NAME`, or `my_encoder.py:build`.

`Role` says what a run takes it for. Without torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

Role = Literal["encoder", "classifier", "detector", "teacher"]  # what a run takes a checkpoint for
OPTIONS = ("copy", "matching_heuristics")  # the second is detectron2's and changes nothing: keys are always matched
_CODE = re.compile(r"(?P<file>.+\.py):(?P<function>[^:/?]*)")


class UserCode(NamedTuple):
    """A function in a Python file of the user's own."""

    file: Path
    function: str

    @property
    def name(self) -> str:
        """As results show it: `my_encoder.py:build`."""
        return f"{self.file.name}:{self.function}"

    @property
    def location(self) -> Path:
        """As runs keep it: the file's absolute path and the function."""
        return Path(f"{self.file.absolute()}:{self.function}")


def user_code(text: str | Path) -> UserCode | None:
    """The function that `text` names as FILE.py:FUNCTION; None of anything else, and of a file that has this name.

    Raises:
        ValueError: if no function is named: `my_encoder.py` or `my_encoder.py:`.
    """
    text = str(text)
    found = _CODE.fullmatch(text)
    if text.endswith(".py") or (found and not found["function"].isidentifier()):
        raise ValueError(
            f"{text} names no function of a Python file; write my_encoder.py:build, where build() returns the encoder"
        )
    if found is None or Path(text).exists():
        return None
    return UserCode(Path(found["file"]).expanduser(), found["function"])


def is_location(text: str) -> bool:
    """Whether `text` may be more than a path: a URL, or a file with options."""
    return "?" in text or ":/" in text


def parse_location(text: str) -> tuple[Path, dict[str, str]]:
    """The file and the options in `text`: a path or a `file://` URL, either with `?copy=NAME` at its end.

    A file that really has a question mark in its name is taken by that name. `~` is the home directory.

    Raises:
        ValueError: if it is a URL of another kind, or has an option that there is not.
    """
    path, query = text, ""
    if not Path(text).exists():
        path, _, query = text.partition("?")
    scheme = re.match(r"([a-z][a-z0-9+.-]+):/", path, re.IGNORECASE)
    if scheme is not None:
        path = _local(path, scheme.group(1).lower())
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in OPTIONS:
            raise ValueError(f"{text}: a checkpoint has no option {key!r}; there is copy=NAME")
    options.pop("matching_heuristics", None)
    return Path(path).expanduser(), options


def _local(url: str, scheme: str) -> str:
    parts = urlsplit(url)
    if scheme != "file" or parts.netloc not in ("", "localhost"):
        url = re.sub(r":/+", "://", url, count=1)  # one slash was lost if it came as a Path
        raise ValueError(f"{url} is not on this machine, and runs fetch nothing: download it first and give the file")
    return unquote(parts.path)
