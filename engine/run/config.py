"""Configs: typed, frozen dataclasses that are written to and read from text, take overrides and have an identity.

A recipe is a function that returns one. Each field belongs to a group that says what it may change:

    science    the result (part of the run's identity)
    speed      nothing beyond rounding
    plumbing   nothing but what is logged, where, and how often

The text form is TOML with dotted keys, one line per value, so that it can be read, compared and run again.
A field that is `None` is written as the string "none".
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from mimbench.engine.run.fields import (
    chosen_member,
    config_members,
    field_types,
    recorded_field,
    recorded_name,
    told_current_name,
    under_current_names,
    union_members,
)

# Part of every identity: raise it when the same config produces another result.
# 1: data sets counted by their names or paths, and an encoder by its tensors alone.
# 2: data sets count by the fingerprint of their files, and an encoder also by what else changes its features.
SCHEMA = 2
BY_CONTENT = ("data", "subset")  # fields that name files, whose fingerprint counts instead where it is known

Group = Literal["science", "speed", "plumbing"]
C = TypeVar("C")


def _field(group: Group, default: Any, about: str, formerly: str, later: bool = False) -> Any:
    metadata = {"group": group, "about": about, "formerly": formerly, "later": later}
    return dataclasses.field(default=default, metadata=metadata)


def science(default: Any = MISSING, *, about: str = "", formerly: str = "", later: bool = False) -> Any:
    """Return a field that may change the result: part of the run's identity, under its former name if it has one.

    A field added `later` than the first release is left out of the identity while it has its default. The default must
    equal the earlier behaviour, so that existing runs keep their identity.
    """
    return _field("science", default, about, formerly, later)


def speed(default: Any = MISSING, *, about: str = "", formerly: str = "") -> Any:
    """Return a field that changes the speed, and the result by no more than rounding."""
    return _field("speed", default, about, formerly)


def plumbing(default: Any = MISSING, *, about: str = "", formerly: str = "") -> Any:
    """Return a field that changes what is logged or saved and where, never the result."""
    return _field("plumbing", default, about, formerly)


def nested(default_factory: Any, *, formerly: str = "") -> Any:
    """Return a field that holds another config, whose fields have their own groups."""
    return dataclasses.field(default_factory=default_factory, metadata={"formerly": formerly})


@dataclass(frozen=True)
class Compute:
    """How a run uses its machine. No field is part of the run's identity."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = speed(
        "auto", about="auto: bf16 if the hardware computes in it, else fp32"
    )
    accumulate: int = speed(1, about="micro-batches per optimiser step")
    shard: bool = speed(
        False,
        about="each process keeps a share of the weights, gradients and moments (FSDP): less memory, more exchange",
    )
    workers: int | Literal["auto"] = speed(
        "auto",
        about="data loading processes; auto: as many as fit the cores of this process; 0 loads in the training process",
    )
    threads: int | None = speed(None, about="CPU threads; none: one for each core this process may use")
    device: Literal["auto", "cpu", "cuda"] = speed("auto", about="auto: the GPU if there is one")
    log_every: int = plumbing(20, about="optimiser steps between two lines of metrics")
    save_every: int = plumbing(500, about="optimiser steps between two checkpoints")
    save_minutes: float | None = plumbing(
        None, about="also save a checkpoint when the last is this old, at the next line of metrics; none: by steps only"
    )
    keep: int = plumbing(2, about="how many checkpoints to keep")
    wandb: bool = plumbing(False, about="also log to Weights & Biases")

    def __post_init__(self) -> None:
        for name in ("accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.save_minutes is not None and self.save_minutes <= 0:
            raise ValueError(f"save_minutes={self.save_minutes} must be positive, or none")
        if self.workers != "auto" and self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative; auto fits them to the cores")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads} must be at least 1, or none")


@dataclass(frozen=True)
class Leaf:
    """One value of a config: its dotted key, its value, its group, and its key in identities."""

    key: str
    value: Any
    group: Group
    recorded: str  # its first name
    unrecorded: bool = False  # added in a later release and at its default, so identities leave it out


def leaves(config: Any, prefix: str = "", recorded_prefix: str = "") -> Iterator[Leaf]:
    """Yield every value of `config`, depth first, in the order of its fields."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key, recorded = prefix + field.name, recorded_prefix + recorded_field(field)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{key}.", f"{recorded}.")
        else:
            unrecorded = field.metadata.get("later", False) and value == field.default
            yield Leaf(key, value, field.metadata.get("group", "science"), recorded, unrecorded)


def keys(config: Any) -> set[str]:
    """Return every dotted key that an override of `config` may name, including former names."""
    return {name for leaf in leaves(config) for name in (leaf.key, leaf.recorded)}


def identity(
    config: Any, recipe_stage: str, checkpoint_hash: str | None, data: str | None = None, schema: int = SCHEMA
) -> str:
    """Return ten hex digits that identify a run: a hash of its science, the schema, and the content of its inputs.

    The paths of the checkpoint and of the data are left out: the same files elsewhere are the same run.

    Args:
        config: the resolved config.
        recipe_stage: the task's name.
        checkpoint_hash: content hash of the input checkpoint; None from scratch.
        data: fingerprint of the data (engine/data/content.py); None if it is unknown, and then the names count.
        schema: 1 for the identity that earlier releases gave.
    """
    left_out = ("checkpoint", *BY_CONTENT) if data is not None and schema > 1 else ("checkpoint",)
    science_leaves = [leaf for leaf in leaves(config) if leaf.group == "science" and leaf.key not in left_out]
    values = {leaf.recorded: _canonical(leaf.value) for leaf in science_leaves if not leaf.unrecorded}
    kind = f"{recipe_stage}.{recorded_name(type(config))}"
    whole = {"schema": schema, "kind": kind, "science": values, "checkpoint": checkpoint_hash}
    if schema > 1:
        whole["data"] = data
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:10]


def _canonical(value: Any) -> Any:
    """Return `value` with whole floats as integers: 5 and 5.0 are the same number, and the same run."""
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _toml(value: Any) -> str:
    """Return one TOML value. JSON's strings, numbers, booleans and lists are valid TOML, except infinities."""
    if value is None:
        return '"none"'
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def to_text(config: Any, unused: str = "") -> str:
    """Return `config` as TOML lines `key = value`, with the group as a comment unless it is science.

    Fields of the group `unused` say so: "encoder" where the checkpoint has the sizes that count.
    """
    lines = []
    for leaf in leaves(config):
        line = f"{leaf.key} = {_toml(leaf.value)}"
        note = "  # not used: the checkpoint has its own sizes" if unused and leaf.key.startswith(f"{unused}.") else ""
        lines.append(f"{line}{note}" if leaf.group == "science" else f"{line}  # {leaf.group}")
    return "\n".join(lines) + "\n"


def from_text(kind: type[C], text: str, source: str = "config") -> C:
    """Return the config of type `kind` from text that `to_text` wrote, in this release or an earlier one.

    Raises:
        ValueError: naming `source` and the first key that is unknown, missing or of the wrong type.
    """
    try:
        built: C = _build(kind, under_current_names(kind, tomllib.loads(text)))
        return built
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not a config file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def with_overrides(config: C, overrides: Sequence[str]) -> C:
    """Return `config` with `key=value` overrides applied, checked against the types of its fields.

    A `kind` that selects another member of a union starts from that member's defaults, regardless of its position in
    the list; `method=mae` is short for `method.kind=mae`. Former names of keys are accepted, and logged with the new
    name.

    Raises:
        ValueError: for an override without `=`, an unknown key (the message suggests the nearest) or a value of the
            wrong type.
    """
    if not overrides:
        return config
    values = dataclasses.asdict(config)  # type: ignore[call-overload]
    pairs = [_spelt_out(*_pair(override), type(config)) for override in overrides]
    for key, text in sorted(pairs, key=lambda pair: (pair[0].rpartition(".")[2] != "kind", pair[0].count("."))):
        types_of = dict(_types(type(config), values))
        if key not in types_of:
            raise ValueError(f"unknown key {key!r}{_nearest(key, types_of)}")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        if last == "kind" and target[last] != text:
            target.clear()
        target[last] = _from_command_line(text, types_of[key])
    built: C = _build(type(config), values)
    return built


def _pair(override: str) -> tuple[str, str]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"{override!r} is not of the form key=value")
    return key, text


def _spelt_out(key: str, text: str, kind: Any) -> tuple[str, str]:
    """Return `masking=attention` as `masking.kind=attention` if `masking` is a union of dataclasses."""
    key = told_current_name(kind, key)
    hint = field_types(kind).get(key)
    return (f"{key}.kind", text) if len(config_members(hint)) > 1 else (key, text)


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    same_end = [name for name in known if name.endswith(f".{key}")]
    near = same_end or difflib.get_close_matches(key, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; the keys are {', '.join(known)}"


def _types(kind: Any, values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and type of every value; `values` determine the member of each union."""
    for name, hint in field_types(kind).items():
        value = values.get(name, {})
        branch = chosen_member(hint, value, prefix + name)
        if branch is None:
            yield prefix + name, hint
        else:
            yield from _types(branch, value, f"{prefix}{name}.")


def _from_command_line(text: str, hint: Any) -> Any:
    """Return `text` as a value of type `hint`: a string needs no quotes, a list no brackets."""
    wanted = [typing.get_origin(option) or option for option in union_members(hint)]
    if text == "none" or (wanted[0] in (str, Literal) and text[:1] not in ("'", '"')):
        return text
    listed = tuple in wanted and not text.startswith("[")
    try:
        return tomllib.loads(f"value = [{text}]" if listed else f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in text.split(",")] if listed else text


def _build(kind: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """Build `kind` from nested dictionaries, its inner dataclasses first, each checked by pydantic.

    Raises:
        ValueError: for the first fault, in one line that begins with the dotted key.
    """
    import pydantic  # 0.15 s, which `mimbench --help` avoids

    hints = field_types(kind)
    if unknown := [prefix + key for key in values if key not in hints]:
        raise ValueError(f"unknown key {unknown[0]!r}{_nearest(unknown[0], [prefix + name for name in hints])}")
    arguments = {name: _argument(hints[name], value, prefix + name) for name, value in values.items()}
    try:
        return _adapter(kind).validate_python(arguments)
    except pydantic.ValidationError as error:
        raise ValueError(_complaint(error.errors(), arguments, prefix)) from None


@lru_cache
def _adapter(kind: Any) -> Any:
    """Return the validator of a dataclass, cached: it takes 5 ms to build, and a study may have 1,000 runs."""
    import pydantic

    return pydantic.TypeAdapter(kind)


def _argument(hint: Any, value: Any, key: str) -> Any:
    options = union_members(hint)
    if value == "none" and type(None) in options:
        return None
    if (branch := chosen_member(hint, value, key)) is not None:
        return _build(branch, value, key + ".")
    if isinstance(value, bool) and bool not in options:  # Python and pydantic would read it as the number 1
        raise ValueError(f"{key}={str(value).lower()} must be a number or text, not true or false")
    return value


def _complaint(faults: Any, arguments: dict[str, Any], prefix: str) -> str:
    """Return one line for pydantic's first fault, located by its field; a union's words are named as well."""
    fault = faults[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    key = prefix + name if name else prefix.rstrip(".")
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{key}: {message}" if key else message
    if name not in arguments:
        return f"{key} is missing"
    message = "more values are needed" if fault["type"] == "missing" else message[0].lower() + message[1:]
    same = [other for other in faults[1:] if other["loc"][:1] == fault["loc"][:1]]
    words = [other["ctx"]["expected"] for other in same if other["type"] == "literal_error"]
    return ", or ".join([f"{key}={arguments[name]!r}: {message}", *words])
