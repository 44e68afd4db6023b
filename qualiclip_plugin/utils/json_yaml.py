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

from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError, first_line
from qualiclip_plugin.utils.regular_files import read_regular

MAX_JSON_BYTES = 256 * 2**20
"""A result with the names of a million failed images is about half as large."""
MAX_YAML_BYTES = 64 * 2**10
"""The largest file in this project has two kilobytes; PyYAML takes about a second for as many as this."""
MAX_DEPTH = 32
SEAL = "seal"
"""Key of a document's own SHA-256."""


def read_json(path: str | os.PathLike[str], error: type[QualiCLIPError], what: str) -> dict[str, Any]:
    """Read a JSON object; :func:`check_json` then tells whether it holds what it should.

    Args:
        path: The file.
        error: What to raise.
        what: What the file should be, for the message: ``"a baseline"``.

    Raises:
        QualiCLIPError: Of the type ``error``: the file cannot be read, is too large or is no JSON object.
    """
    try:
        content = read_regular(path, MAX_JSON_BYTES)
    except OSError as problem:
        raise error(f"{path}: not {what}: cannot be read: {problem.strerror or problem}") from problem
    return parse_json(content, error, f"{path}: not {what}")


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
        raise error(f"{prefix}: it was altered after it was written")


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
    try:
        content = read_regular(path, MAX_YAML_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
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


def key_lines(node: yaml.Node | None, source: str) -> dict[str, int]:
    """The line of every key of a YAML document; keys inside others stand behind a dot.

    Raises:
        ConfigError: A key stands twice in one mapping, of which YAML would silently keep the last.
    """
    return _key_lines(node, source, "")


def _key_lines(node: yaml.Node | None, source: str, prefix: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"{source}, line {line}: {name} is already in line {lines[name]}")
            lines[name] = line
            lines |= _key_lines(value, source, f"{name}.")
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
