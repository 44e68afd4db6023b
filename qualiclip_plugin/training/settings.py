"""Plain values, as YAML and the command line give them, to dataclasses with checked types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from qualiclip_plugin.errors import ConfigError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a dataclass from plain values, and the dataclasses inside it.

    Args:
        cls: The dataclass.
        values: Setting -> value, as YAML reads it.
        source: What an error names as the place of the values.

    Raises:
        ConfigError: A setting is unknown, missing or of another type; text is never taken for a truth value and no
            fraction is cut off.
    """
    hints = typing.get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            hint = did_you_mean(str(key), fields) or f"; there are {', '.join(fields)}"
            raise ConfigError(f"{source}: unknown setting {key!r}{hint}")
    unset = dataclasses.MISSING
    for name, entry in fields.items():
        if name not in values and entry.default is unset and entry.default_factory is unset:
            raise ConfigError(f"{source}: the setting {name!r} is missing")
    return cls(**{key: convert(key, value, hints[key]) for key, value in values.items()})


def convert(name: str, value: Any, annotation: Any) -> Any:
    """Turn a plain value into the annotated type; errors as :func:`build`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _convert_union(name, value, typing.get_args(annotation))
    if typing.get_origin(annotation) is None:
        return _convert_plain(name, value, annotation)
    if typing.get_origin(annotation) is tuple and isinstance(value, list | tuple):
        return _convert_tuple(name, value, typing.get_args(annotation))
    if isinstance(value, Mapping):
        kinds = typing.get_args(annotation)
        return {convert(name, key, kinds[0]): convert(name, item, kinds[1]) for key, item in value.items()}
    raise ConfigError(f"{name} must be {_type_name(annotation)}, not {value!r}")


def _convert_plain(name: str, value: Any, annotation: Any) -> Any:
    if annotation is type(None) and value is None:
        return None
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return build(annotation, value, name)
    if annotation is float and not isinstance(value, bool):
        # YAML 1.1 reads 3e-4 as text because it has no dot.
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif annotation in (bool, int, str) and type(value) is annotation:
        return value
    raise ConfigError(f"{name} must be {_type_name(annotation)}, not {value!r}")


def _convert_union(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    groups = [choice for choice in choices if dataclasses.is_dataclass(choice)]
    if groups and isinstance(value, Mapping):
        # Its own error names the key at fault.
        return convert(name, value, groups[0])
    for choice in choices:
        try:
            return convert(name, value, choice)
        except ConfigError:
            continue
    raise ConfigError(f"{name} must be {' or '.join(map(_type_name, choices))}, not {value!r}")


def _convert_tuple(name: str, value: Iterable[Any], kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    items = list(value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise ConfigError(f"{name} must be {len(kinds)} values, not {items!r}")
    return tuple(convert(name, item, kind) for item, kind in zip(items, kinds, strict=True))


def _type_name(annotation: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return names.get(annotation, "a list" if typing.get_origin(annotation) is tuple else "a mapping")
