"""What a weights file must not do to its reader: run code, take more memory than it has bytes, or differ unnoticed.

Nothing here decides whether weights are good. A file that passes holds plain tensors, no larger than the file, under
a header whose values have the right types, and, where this project wrote it, is byte for byte what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.utils.errors import WeightsError
from qualiclip_plugin.weights.pickles import is_plain

DIGEST = "sha256"

COLUMNS = ("path", "score", "width", "height", "error", "note")
"""Of a table of scores beside the attributes, which therefore cannot have these names."""

_NUMBER = {"type": "number"}
_SIZE = {"type": "integer", "minimum": 1, "maximum": 65536}
_DEPTH = {"type": "integer", "minimum": 1, "maximum": 256}
_VALUE = {"anyOf": [{"type": ["string", "boolean", "null"]}, {**_NUMBER, "minimum": -65536, "maximum": 65536}]}
_SETTING = {"anyOf": [_VALUE, {"type": "array", "items": _VALUE, "maxItems": 256}]}
_SETTINGS = {"type": "object", "additionalProperties": _SETTING}
_VISION = {
    "type": "object",
    "properties": {"layers": {"anyOf": [_DEPTH, {"type": "array", "items": _DEPTH, "maxItems": 8}]}},
    "additionalProperties": {"anyOf": [_SETTING, _SETTINGS]},
}
_NAME = {"type": "string", "maxLength": 100, "not": {"enum": list(COLUMNS)}}
_NAMES = {"type": "array", "items": _NAME, "minItems": 1, "uniqueItems": True}
HEADER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["backbone", "logit_scale", "mean", "std", "attributes"],
    "properties": {
        "backbone": {
            "type": "object",
            "required": ["embed_dim", "vision_cfg"],
            "properties": {
                "embed_dim": _SIZE,
                "quick_gelu": {"type": "boolean"},
                "positional_embedding": {"type": "boolean"},
                "vision_cfg": _VISION,
            },
        },
        "logit_scale": {**_NUMBER, "minimum": -1e6, "maximum": 1e6},
        "mean": {"type": "array", "items": _NUMBER, "minItems": 3, "maxItems": 3},
        "std": {"type": "array", "items": {**_NUMBER, "exclusiveMinimum": 0}, "minItems": 3, "maxItems": 3},
        "attributes": _NAMES,
        "card": {"type": "object"},
    },
}
"""The JSON header of this project's files. Numbers are bounded so that building the network cannot take for ever."""


def plain_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The content of a weights file as names and dense tensors of numbers, each with memory of its own size.

    Raises:
        WeightsError: It is something else.
    """
    if isinstance(content, Mapping) and isinstance(content.get("params"), Mapping):
        content = content["params"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise WeightsError(f"{path} holds no dictionary of tensors")
    for name, value in content.items():
        if not is_plain(value):
            raise WeightsError(f"{path} was refused: {name[:100]!r} is no plain tensor of numbers")
    return dict(content)


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a header without its digest, and all tensors with their names, types and shapes."""
    rest = {key: value for key, value in header.items() if key != DIGEST}
    result = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        result.update(value.flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()
