"""Plain values, as YAML and the command line give them, to dataclasses with checked types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from qualiclip_plugin.utils.errors import ConfigError, did_you_mean
from qualiclip_plugin.utils.json_yaml import key_lines, read_yaml

T = TypeVar("T")
Place = Callable[[str], str]
"""A setting, with dots where groups nest -> where it was read, for messages: ``lite``, ``mine.yaml, line 3``."""


def read_settings(path: str | Path, cls: type[T]) -> T:
    """Read a YAML file whose keys are the fields of a dataclass; see :func:`build`.

    Raises:
        ConfigError: No YAML of one mapping, or a key that is unknown, missing, written twice or of another type,
            named with its line.
    """
    values, node = read_yaml(path)
    lines = key_lines(node, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, not {values!r}")
    return build(cls, values, lambda name: f"{path}, line {lines.get(name, 1)}")


def build(cls: type[T], values: Mapping[str, Any], place: Place, group: str = "") -> T:
    """Build a dataclass from plain values, and the dataclasses inside it.

    Args:
        cls: Its fields are truth values, numbers, text, literals, tuples, mappings, dataclasses, or unions of them.
        values: Setting -> value, as YAML reads it.

    Raises:
        ConfigError: A setting is unknown, missing or of another type; text is never taken for a truth value and no
            fraction is cut off.
    """
    prefix = f"{group}." if group else ""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            hint = did_you_mean(str(key), fields) or f"; there are {', '.join(fields)}"
            raise ConfigError(f"{place(f'{prefix}{key}')}: unknown setting '{prefix}{key}'{hint}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place(group)}: the setting '{prefix}{name}' is missing")
    return cls(**{key: _value(hints[key], value, place, prefix + key) for key, value in values.items()})


def _value(kind: Any, value: Any, place: Place, name: str) -> Any:
    """Turn a plain value into a type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(inner, value, place, name)
    if origin is tuple and isinstance(value, list | tuple):
        return _items(inner, value, place, name)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, place, name)  # type: ignore[arg-type]
    if origin is Mapping and isinstance(value, Mapping):
        keys, items = inner
        return {
            _value(keys, key, place, name): _value(items, item, place, f"{name}.{key}") for key, item in value.items()
        }
    return _plain(kind, value, place, name)


def _plain(kind: Any, value: Any, place: Place, name: str) -> Any:
    if kind is float and not isinstance(value, bool):
        # YAML 1.1 reads 3e-4 as text because it has no dot.
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is kind or (typing.get_origin(kind) is Literal and value in typing.get_args(kind)):
        return value
    raise _refusal(kind, value, place, name)


def _one_of(kinds: tuple[Any, ...], value: Any, place: Place, name: str) -> Any:
    groups = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if groups and isinstance(value, Mapping):
        # Its own error names the key at fault.
        return _value(groups[0], value, place, name)
    for kind in kinds:
        try:
            return _value(kind, value, place, name)
        except ConfigError:
            continue
    raise _refusal(typing.Union[kinds], value, place, name)  # noqa: UP007 (made of a tuple)


def _items(kinds: tuple[Any, ...], values: list[Any] | tuple[Any, ...], place: Place, name: str) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(values) != len(kinds):
        raise ConfigError(f"{place(name)}: {name} must be {len(kinds)} values, not {values!r}")
    return tuple(_value(kind, item, place, name) for kind, item in zip(kinds, values, strict=True))


def _refusal(kind: Any, value: Any, place: Place, name: str) -> ConfigError:
    return ConfigError(f"{place(name)}: {name} must be {_in_words(kind)}, not {value!r}")


def _in_words(kind: Any) -> str:
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, choices))
    if origin is Literal:
        return " or ".join(map(str, choices))
    return _WORDS.get(kind, "a list" if origin is tuple else "a mapping")


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in quotes)",
    type(None): "null",
}
