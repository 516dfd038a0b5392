"""The fields of config classes: their types, the members of unions, and their names in earlier releases.

A field declares its former name, `grad_clip: float = science(1.0, formerly="clip")`. Overrides and config files with
former names keep working; identities use the first name of a field, so renaming a field does not change the identity
of any run.
"""

from __future__ import annotations

import dataclasses
import logging
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

log = logging.getLogger(__name__)


@lru_cache
def field_types(kind: Any) -> dict[str, Any]:
    """Return the type of each field of dataclass `kind`; cached, because it takes 0.7 ms and is asked often."""
    found = typing.get_type_hints(kind)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


@lru_cache
def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; for any other type, only that type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@lru_cache
def config_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union that are dataclasses."""
    return tuple(member for member in union_members(hint) if dataclasses.is_dataclass(member))


def chosen_member(hint: Any, value: Any, key: str) -> Any:
    """Return the dataclass that the dictionary `value` describes; None if `hint` has no dataclass or `value` is no
    dictionary.

    The field `kind: Literal["..."]` identifies the member of a union.

    Raises:
        ValueError: naming `key`, if `kind` matches no member.
    """
    found = config_members(hint)
    if not found or not isinstance(value, dict):
        return None
    if len(found) == 1:
        return found[0]
    by_kind = {typing.get_args(field_types(one)["kind"])[0]: one for one in found}
    if value.get("kind") not in by_kind:
        raise ValueError(f"{key}.kind={value.get('kind')!r} must be one of {', '.join(map(repr, by_kind))}")
    return by_kind[value["kind"]]


def recorded_name(kind: type[Any]) -> str:
    """Return a config class's name in identities and `run.json`: its `formerly` if it was renamed."""
    name: str = kind.__dict__.get("formerly", kind.__name__)
    return name


def recorded_field(field: dataclasses.Field[Any]) -> str:
    """Return a field's name in identities and `run.json`."""
    name: str = field.metadata.get("formerly") or field.name
    return name


@lru_cache
def _former(kind: Any) -> dict[str, str]:
    """Return the current name by former name, for the renamed fields of `kind`."""
    fields = {recorded_field(field): field.name for field in dataclasses.fields(kind)}
    return {former: name for former, name in fields.items() if former != name}


def under_current_names(kind: Any, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the nested dictionary of a config of type `kind` with its keys under their current names.

    Raises:
        ValueError: if a field is given under both names.
    """
    renamed = {}
    for key, value in values.items():
        name = _former(kind).get(key, key)
        if name != key and name in values:
            raise ValueError(f"{prefix}{key} was renamed to {prefix}{name}, but both are given: remove {prefix}{key}")
        renamed[name] = value
        if isinstance(value, dict):
            for member in config_members(field_types(kind).get(name)):
                renamed[name] = under_current_names(member, renamed[name], f"{prefix}{name}.")
    return renamed


def with_later_fields(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested values of a config of type `kind` with the `later` fields that its text does not have.

    Such a field has its default, written as in a text: that is what runs did before there was the field.
    """
    missing = {
        field.name: _as_in_text(field.default)
        for field in dataclasses.fields(kind)
        if field.metadata.get("later") and field.name not in values
    }
    filled = {**values, **missing}
    for name, value in values.items():
        members = config_members(field_types(kind).get(name))
        if isinstance(value, dict) and len(members) == 1:
            filled[name] = with_later_fields(members[0], value)
    return filled


def _as_in_text(value: Any) -> Any:
    """Return a default as reading a config's text gives it: "none" for None, a list for a tuple."""
    if value is None:
        return "none"
    return [_as_in_text(item) for item in value] if isinstance(value, tuple) else value


def current_name(kind: Any, key: str) -> str:
    """Return a dotted key of a config of type `kind` under its current name."""
    first, dot, rest = key.partition(".")
    name = _former(kind).get(first, first)
    for member in config_members(field_types(kind).get(name)):
        rest = current_name(member, rest)
    return f"{name}{dot}{rest}"


def told_current_name(kind: Any, key: str) -> str:
    """Return a dotted key under its current name, and log a line if that differs from `key`."""
    name = current_name(kind, key)
    if name != key:
        _tell(key, name)
    return name


@lru_cache
def _tell(former: str, name: str) -> None:
    """Log the current name, once per process."""
    log.warning("%s was renamed to %s; the old name works in this release only", former, name)
