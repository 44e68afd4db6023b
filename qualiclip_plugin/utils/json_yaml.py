"""JSON and YAML that may come from anywhere: read within limits, and every fault named in one line.

A document larger, or nested deeper, than anything this project writes is refused before it is taken apart. JSON is
held to a schema (JSON Schema), so that the code behind it never meets a missing key or a value of another type.
What no one but this project writes is sealed: it carries the SHA-256 of the rest of itself, and a bit that flipped
on a disk is an error rather than another number.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import yaml

from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError, disk_errors, first_line
from qualiclip_plugin.utils.regular_files import read_regular

MAX_JSON_BYTES = 256 * 2**20
"""A result with the names of a million failed images is about half as large."""
MAX_YAML_BYTES = 64 * 2**10
"""The largest file in this project has two kilobytes; PyYAML takes about a second for as many as this."""
MAX_DEPTH = 32
SEAL = "seal"
"""Key of a document's own SHA-256."""


def read_json(path: str | os.PathLike[str], error: type[QualiCLIPError], what: str) -> dict[str, Any]:
    """Read a JSON object that holds anything; see :func:`read_document`.

    Raises:
        QualiCLIPError: Of the type ``error``: the file cannot be read, is too large or is no JSON object.
    """
    with disk_errors(f"{path}: not {what}", error, "read"):
        content = read_regular(path, MAX_JSON_BYTES)
    return parse_json(content, error, f"{path}: not {what}")


def read_document(
    path: str | os.PathLike[str],
    schema: Mapping[str, Any],
    error: type[QualiCLIPError],
    what: str,
    version: int | None = None,
    other_version: tuple[type[QualiCLIPError], str] = (ConfigError, ""),
) -> dict[str, Any]:
    """Read a JSON object and hold it to its schema, its seal and its version.

    Args:
        schema: See :func:`check_json`.
        what: What the file should be, for the message: ``"a baseline"``.
        version: The ``schema_version`` that is read here; ``None``: it has none.
        other_version: What to raise where it has another one, and what to do then.

    Raises:
        QualiCLIPError: Of the type ``error``: the file cannot be read, is too large, or holds something else.
    """
    values = read_json(path, error, what)
    found = values.get("schema_version")
    if version is not None and isinstance(found, int) and found != version:
        raise other_version[0](f"{path}: schema version {found}, this release reads {version}; {other_version[1]}")
    check_json(values, schema, error, f"{path}: not {what}")
    return values


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object in one step; :func:`sealed` content lets :func:`read_document` tell what was altered.

    Raises:
        OSError: The folder cannot be written or the disk is full; ``path`` is then untouched.
    """
    with atomic_write(path) as file:
        file.write(json_text(content))


def json_text(content: Mapping[str, Any]) -> bytes:
    """A JSON object as a file of this project holds it: sorted, a key a line, no number that is not finite."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # of a name that is no UTF-8, as JSON escapes it


def plain(value: Any) -> Any:
    """Values as JSON and YAML hold them: mappings, lists, numbers and text; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two documents, as ``key: then -> now``, by key."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key, '-')} -> {now.get(key, '-')}" for key in keys]


def parse_json(content: bytes | str, error: type[QualiCLIPError], prefix: str) -> dict[str, Any]:
    """A JSON object from text; ``prefix`` begins every message. See :func:`read_json`."""
    try:
        values = json.loads(content, parse_constant=_finite, parse_float=_finite)
        if (b"\\u" if isinstance(content, bytes) else "\\u") in content:  # type: ignore[operator]
            # Half of a surrogate pair is a string to Python, and text to nothing that it is written to.
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as fault:
        raise error(f"{prefix}: not JSON: {first_line(fault)}") from fault
    if not isinstance(values, dict):
        raise error(f"{prefix}: expected an object, got {type(values).__name__}")
    return values


def check_json(
    values: Mapping[str, Any], schema: Mapping[str, Any], error: type[QualiCLIPError], prefix: str
) -> None:
    """Hold a JSON object to a JSON Schema, and to its seal where it has one.

    Raises:
        QualiCLIPError: Of the type ``error``; names the first place that does not fit.
    """
    from jsonschema.exceptions import best_match
    from jsonschema.validators import Draft202012Validator

    problem = best_match(Draft202012Validator(schema).iter_errors(values))
    if problem is not None:
        raise error(f"{prefix}: {_short(problem.json_path)}: {_short(problem.message)}")
    try:
        whole = SEAL not in values or values[SEAL] == _seal_of(values)
    except RecursionError:
        whole = False
    if not whole:
        raise error(f"{prefix}: it was altered after it was written; delete it, and let it be made anew")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its seal, which :func:`check_json` compares."""
    return {**content, SEAL: _seal_of(content)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether the content has a seal, and is what was sealed."""
    return SEAL in content and content[SEAL] == _seal_of(content)


def read_yaml(path: str | os.PathLike[str]) -> tuple[Any, yaml.Node | None]:
    """Plain values of a YAML file, and its nodes for line numbers.

    Raises:
        ConfigError: It cannot be read, is no YAML, too large or too deep, or has an alias (``*name``), by which a few
            lines can stand for gigabytes.
    """
    with disk_errors(path, ConfigError, "read"):
        content = read_regular(path, MAX_YAML_BYTES)
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes | str, source: str) -> tuple[Any, yaml.Node | None]:
    """Values and nodes of a YAML document from its text; see :func:`read_yaml`."""
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    # A date or a number whose text is none is an error of Python's own.
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"{source}: not YAML: {_short(str(error))}") from error


def key_lines(node: yaml.Node | None, source: str, prefix: str = "") -> dict[str, int]:
    """The line of every key of a YAML document; keys inside others stand behind a dot.

    Raises:
        ConfigError: A key stands twice in one mapping, of which YAML would silently keep the last.
    """
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"{source}, line {line}: {name} is already in line {lines[name]}")
            lines[name] = line
            lines |= key_lines(value, source, f"{name}.")
    return lines


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted, write the values out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _seal_of(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
