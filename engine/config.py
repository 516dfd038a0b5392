"""Configs: typed, frozen dataclasses that become text, come back from text, take overrides and have an identity.

A recipe is a function that returns one. Each field says what it may change:

    science    the result (part of the run's identity)
    speed      nothing beyond rounding
    plumbing   nothing but what is logged, where, and how often

The text form is TOML with dotted keys, one line per leaf, so that it reads well, compares well and runs again.
A field that is `None` is written as the string "none".
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar

SCHEMA = 1  # part of every identity: raise it when the same config starts to mean another result

Group = Literal["science", "speed", "plumbing"]
C = TypeVar("C")


def _field(group: Group, default: Any, about: str) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "about": about})


def science(default: Any = MISSING, *, about: str = "") -> Any:
    """A field that may change the result: part of the run's identity."""
    return _field("science", default, about)


def speed(default: Any = MISSING, *, about: str = "") -> Any:
    """A field that changes how fast, and the result by no more than rounding."""
    return _field("speed", default, about)


def plumbing(default: Any = MISSING, *, about: str = "") -> Any:
    """A field that changes what is logged, saved or where, never the result."""
    return _field("plumbing", default, about)


@dataclass(frozen=True)
class Compute:
    """How a run uses the machine it is on. None of it is part of the run's identity."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = speed(
        "auto", about="auto: bf16 where the hardware multiplies in it, else fp32"
    )
    accumulate: int = speed(1, about="micro-batches per optimiser step")
    workers: int = speed(2, about="data loading processes; 0 loads in the training process")
    threads: int | None = speed(None, about="CPU threads; none takes one for each core this process may use")
    device: Literal["auto", "cpu", "cuda"] = speed("auto", about="auto: the GPU when there is one")
    log_every: int = plumbing(20, about="optimiser steps between two lines of metrics")
    save_every: int = plumbing(500, about="optimiser steps between two checkpoints")
    keep: int = plumbing(2, about="checkpoints kept")
    wandb: bool = plumbing(False, about="log to Weights & Biases as well")

    def __post_init__(self) -> None:
        for name in ("accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"compute.{name}={getattr(self, name)} must be at least 1")
        if self.workers < 0:
            raise ValueError(f"compute.workers={self.workers} must not be negative")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"compute.threads={self.threads} must be at least 1, or none")


@dataclass(frozen=True)
class Leaf:
    """One value of a config: its dotted key, its value and what it may change."""

    key: str
    value: Any
    group: Group


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every value of `config`, depth first, in the order of its fields."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value, key + ".")
        else:
            yield Leaf(key, value, field.metadata.get("group", "science"))


def identity(config: Any, recipe_stage: str, checkpoint_hash: str | None) -> str:
    """Ten hex digits that name a run: its science, the schema, and the content of its input checkpoint.

    The checkpoint's path is left out: the same weights from another place are the same run.
    """
    values = {leaf.key: leaf.value for leaf in leaves(config) if leaf.group == "science" and leaf.key != "checkpoint"}
    whole = {"schema": SCHEMA, "stage": recipe_stage, "science": values, "checkpoint": checkpoint_hash}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:10]


def _toml(value: Any) -> str:
    """One TOML value. JSON's strings, numbers, booleans and lists are TOML's, but for infinities."""
    if value is None:
        return '"none"'
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def to_text(config: Any) -> str:
    """`config` as TOML lines `key = value`, with what a field may change where it is not science."""
    lines = []
    for leaf in leaves(config):
        line = f"{leaf.key} = {_toml(leaf.value)}"
        lines.append(line if leaf.group == "science" else f"{line}  # {leaf.group}")
    return "\n".join(lines) + "\n"


def from_text(kind: type[C], text: str, source: str = "config") -> C:
    """The config of type `kind` that `to_text` wrote.

    Raises:
        ValueError: naming `source` and the first key that is unknown, missing or of the wrong type.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not a config file: {error}") from error
    return _validated(kind, values, source)


def with_overrides(config: C, overrides: Sequence[str]) -> C:
    """`config` with `key=value` texts applied, checked against the types of its fields.

    Raises:
        ValueError: for a text without `=`, an unknown key (the nearest is offered) or a value of the wrong type.
    """
    if not overrides:
        return config
    values = dataclasses.asdict(config)  # type: ignore[call-overload]
    known = [leaf.key for leaf in leaves(config)]
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"{override!r} is not of the form key=value")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; the keys are {', '.join(known)}"
            raise ValueError(f"unknown key {key!r}{hint}")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        target[last] = _from_command_line(text)
    return _validated(type(config), values, "override")


def _from_command_line(text: str) -> Any:
    """`[1, 2]`, `1.5`, `true` and quoted strings as TOML reads them; anything else is the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [_from_command_line(part.strip()) for part in text.split(",")] if "," in text else text


def _validated(kind: type[C], values: dict[str, Any], source: str) -> C:
    """Build `kind` from nested dictionaries, letting pydantic check every type, and say the first fault in a line."""
    import pydantic  # 0.15 s, which `mimbench --help` need not pay

    try:
        return pydantic.TypeAdapter(kind).validate_python(_without_none(kind, values, source))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part))
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f", not {first['input']!r}"
        raise ValueError(f"{source}: {key + ': ' if key else ''}{message}{given}") from None


def _is_union_tag(part: Any) -> bool:
    """Pydantic names the branch of a union it tried inside the location; people know only the key."""
    return isinstance(part, str) and (part[:1].isupper() or part in ("int", "float", "str", "none", "bool"))


def _without_none(kind: type, values: dict[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """`values` with "none" turned into None where the field allows it; unknown keys are refused."""
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ValueError(f"{source}: unknown key {prefix}{key}{hint}")
    return {key: _known(hints[key], value, source, f"{prefix}{key}.") for key, value in values.items()}


def _known(hint: Any, value: Any, source: str, prefix: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value == "none" and type(None) in options:
        return None
    if isinstance(value, dict):
        branches = [option for option in options if dataclasses.is_dataclass(option)]
        branch = next((b for b in branches if _tag(b) in (None, value.get("kind"))), None)
        if branch is not None:
            return _without_none(typing.cast(type, branch), value, source, prefix)
    return value


def _tag(kind: Any) -> str | None:
    """The one value of a `kind: Literal["..."]` field, which tells the members of a union apart."""
    hint = typing.get_type_hints(kind).get("kind")
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Literal else None
