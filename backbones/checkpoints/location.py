"""Parse the location of a checkpoint: a path or a `file://` URL, also with options, or `my_encoder.py:build`.

    vit.pth?copy=ema                       the moving average, if the file has several sets of weights
    vit.pth?family=deit3&heads=6           what the file does not tell (`checkpoints.stated`)

`Role` is what a run uses the checkpoint as. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

Role = Literal["encoder", "classifier", "detector", "segmenter", "teacher"]  # what a run uses a checkpoint as
SETTINGS = ("family", "heads", "activation", "norm_eps", "mean", "std", "grid")  # what a file's keys may not tell
OPTIONS = ("copy", "matching_heuristics", *SETTINGS)  # the second is detectron2's, without effect
_CODE = re.compile(r"(?P<file>.+\.py):(?P<function>[^:/?]*)")


class UserCode(NamedTuple):
    """A function in a user's Python file."""

    file: Path
    function: str

    @property
    def name(self) -> str:
        """The name shown in results: `my_encoder.py:build`."""
        return f"{self.file.name}:{self.function}"

    @property
    def location(self) -> Path:
        """The location that runs store: the file's absolute path and the function."""
        return Path(f"{self.file.absolute()}:{self.function}")


def user_code(text: str | Path) -> UserCode | None:
    """Parse `text` as FILE.py:FUNCTION; None for anything else, and if a file of that very name exists.

    Raises:
        ValueError: if the function is missing: `my_encoder.py` or `my_encoder.py:`.
    """
    text = str(text)
    found = _CODE.fullmatch(text)
    if text.endswith(".py") or (found and not found["function"].isidentifier()):
        raise ValueError(f"{text} lacks a function name; write my_encoder.py:build, where build() returns the encoder")
    if found is None or Path(text).exists():
        return None
    return UserCode(Path(found["file"]).expanduser(), found["function"])


def is_location(text: str) -> bool:
    """Whether `text` may be a URL or a file with options, not a plain path."""
    return "?" in text or ":/" in text


def parse_location(text: str) -> tuple[Path, dict[str, str]]:
    """Return the file and the options in `text`: a path or a `file://` URL, also with `?copy=NAME` at the end.

    If a file with a question mark in its name exists, `text` is that name. `~` is the home directory.

    Raises:
        ValueError: if it is a URL of another kind, or has an unknown option.
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
            names = ", ".join(("copy", *SETTINGS))
            raise ValueError(f"{text}: unknown option {key!r} of a checkpoint; the options are {names}")
    options.pop("matching_heuristics", None)
    return Path(path).expanduser(), options


def join_location(file: str | Path, options: Mapping[str, str]) -> str:
    """Return the text that `parse_location` splits into `file` and `options`."""
    return "?".join(filter(None, (str(file), "&".join(f"{key}={value}" for key, value in options.items()))))


def with_settings(location: str | Path, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return `location` with the overrides `family=`, `heads=` ... (`SETTINGS`) as options, and the other overrides.

    A setting in `overrides` replaces the same option of `location`.
    """
    pairs = [override.partition("=") for override in overrides]
    settings = {key: value for key, separator, value in pairs if separator and key in SETTINGS}
    rest = [override for override in overrides if override.partition("=")[0] not in settings]
    if not settings:
        return str(location), rest
    if user_code(location) is not None:
        raise ValueError(
            f"{location} is user code, so {', '.join(f'{key}=' for key in settings)} cannot be set: "
            "the encoder's own attributes mean and std tell how its images are normalised"
        )
    file, options = parse_location(str(location))
    return join_location(file, {**options, **settings}), rest


def settled(location: str | Path, settings: Sequence[str]) -> str:
    """Return `location` with `settings` (`family=deit3`, `heads=6` ...) as its options.

    Raises:
        ValueError: if one of them is not a setting.
    """
    text, unknown = with_settings(location, settings)
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r} of a checkpoint; the settings are {', '.join(SETTINGS)}")
    return text


def _local(url: str, scheme: str) -> str:
    parts = urlsplit(url)
    if scheme != "file" or parts.netloc not in ("", "localhost"):
        url = re.sub(r":/+", "://", url, count=1)  # one slash was lost if it came as a Path
        raise ValueError(f"{url} is not a local file; mimbench downloads nothing, so download it and give the file")
    return unquote(parts.path)
