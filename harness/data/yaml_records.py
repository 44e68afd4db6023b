"""Short YAML files turned into frozen records; every mistake is named with its line."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from qualiclip_plugin.documents import read_yaml
from qualiclip_plugin.errors import ConfigError, did_you_mean

Record = TypeVar("Record")


def read_record(path: str | Path, cls: type[Record]) -> Record:
    """Read a YAML file whose keys are the fields of a dataclass; fields that are dataclasses nest.

    Args:
        path: The file.
        cls: Fields of text, numbers, booleans, literals, tuples or further dataclasses.

    Raises:
        ConfigError: Not YAML, an unknown or missing key, or a value of the wrong type, named with its line.
    """
    values, node = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    record: Record = _build(cls, values, _line_numbers(node, str(path)), str(path), "")
    return record


def _line_numbers(node: yaml.Node | None, path: str, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                # YAML would silently keep the last of the two.
                raise ConfigError(f"{path}, line {line}: key {name} is already in line {lines[name]}")
            lines[name] = line
            lines |= _line_numbers(value, path, f"{name}.")
    return lines


def _build(cls: Any, values: Any, lines: Mapping[str, int], path: str, prefix: str) -> Any:
    where = f"{path}, line {lines.get(prefix.rstrip('.'), 1)}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.')} needs keys, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            hint = did_you_mean(str(key), fields, most=1) or f"; known: {', '.join(fields)}"
            raise ConfigError(f"{path}, line {lines.get(f'{prefix}{key}', 1)}: unknown key {prefix}{key}{hint}")
    missing = [name for name, field in fields.items() if name not in values and _required(field)]
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(prefix + name for name in missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], values[key], lines, path, prefix + key) for key in values})


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, lines: Mapping[str, int], path: str, name: str) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if isinstance(hint, types.UnionType):
        return None if value is None else _value(options[0], value, lines, path, name)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, lines, path, f"{name}.")
    if typing.get_origin(hint) is Literal:
        if value in options:
            return value
        expected = " or ".join(map(str, options))
    elif typing.get_origin(hint) is tuple:
        number = options[0] is float
        size = len(options) if number else None
        if isinstance(value, list) and size in (None, len(value)) and all(_is(options[0], item) for item in value):
            return tuple(map(options[0], value))
        expected = "two numbers" if number else "a list of words"
    elif _is(hint, value):
        return hint(value)
    else:
        expected = {str: "text (in quotes)", int: "a whole number", bool: "true or false"}[hint]
    raise ConfigError(f"{path}, line {lines.get(name, 1)}: {name} must be {expected}, got {value!r}")


def _is(kind: type, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)
