"""JSON Schemas of stored cells and baselines: everything that other code reads without a check."""

from __future__ import annotations

from typing import Any

from harness.statistics import STATISTICS
from qualiclip_plugin.utils.json_yaml import SEAL

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number", "minimum": -1e308, "maximum": 1e308}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
TEXTS: Schema = {"type": "array", "items": TEXT}


def some(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these keys and possibly others."""
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def mapping(values: Schema) -> Schema:
    """An object whose values all meet a schema."""
    return {"type": "object", "additionalProperties": values}


FIGURE = record({"value": some(NUMBER)}, {"low": NUMBER, "high": NUMBER, "reason": TEXT})
FIT = {
    **record(
        {
            "form": {"enum": ["logistic4", "logistic5"]},
            "parameters": {"type": "array", "items": some(NUMBER), "maxItems": 5},
        },
        {"centre": some(NUMBER), "spread": some(NUMBER), "rising": FLAG, "converged": FLAG, "reason": TEXT},
    ),
    "additionalProperties": False,
}
NO_FIT: Schema = {"type": "object", "maxProperties": 0}
GROUP = record(
    {"n": COUNT, "n_failed": COUNT, "figures": mapping(FIGURE)},
    {"fit": {"anyOf": [NO_FIT, FIT]}, "krasula": {"type": "object"}, "ceiling": mapping(NUMBER)},
)
SCORER = record(
    {"name": TEXT},
    {"opinion_aware": some(FLAG), "trained_on": some(TEXTS), "licence": some(TEXT), "chosen_on": some(TEXTS)},
)

UNAVAILABLE = record(
    {
        "status": TEXT,
        "reason": TEXT,
        "scorer": SCORER,
        "dataset": record({"name": TEXT}),
        "subsets": {"type": "object", "maxProperties": 0},
    }
)
"""A scorer that could not start."""

MEASURED = record(
    {
        "status": TEXT,
        "date": TEXT,
        "device": TEXTS,
        "seconds": NUMBER,
        "inputs": TEXT,
        "settings": {"type": "object"},
        "versions": mapping(TEXT),
        "failures": {"type": "array", "items": record({"file_name": TEXT, "error": TEXT})},
        "scorer": {
            **SCORER,
            "required": ["name", "lower_better", "fingerprint", "identity"],
            "properties": {
                **SCORER["properties"],
                "lower_better": FLAG,
                "fingerprint": TEXT,
                "identity": {"type": "object"},
            },
        },
        "dataset": record(
            {
                "name": TEXT,
                "version": TEXT,
                "images": {**COUNT, "minimum": 1},
                "labels_hash": TEXT,
                "opinion": some(record({"kind": TEXT, "lower_better": FLAG})),
            },
            {"seen_by": TEXTS, "unordered": TEXTS},
        ),
        "subsets": {**mapping(GROUP), "required": ["all"]},
        "distortions": mapping(GROUP),
        "levels": mapping(GROUP),
    }
)
"""A scorer on a dataset."""

CELL: Schema = {
    **record({"schema_version": COUNT, "subsets": {"type": "object"}}),
    "if": {"properties": {"subsets": {"maxProperties": 0}}},
    "then": UNAVAILABLE,
    "else": MEASURED,
}

_PAIR = record(
    {
        **dict.fromkeys(("first", "second", "reason"), TEXT),
        **dict.fromkeys(("difference", "low", "high", "p"), some(NUMBER)),
        "verdict": {"enum": ["better", "worse", "undecided", ""]},
    }
)
_TEST = record(
    {
        "test": {"enum": ["flip", "williams", "pitman"]},
        "statistic": {"enum": list(STATISTICS)},
        "contents": COUNT,
        "undecidable": TEXT,
        "pairs": {"type": "array", "items": _PAIR},
    }
)
COMPARISONS = record(
    {"made_of": mapping(TEXTS), "n": COUNT, "left_out": COUNT, "tests": {"type": "array", "items": _TEST}}
)
"""See :mod:`harness.report.comparisons`."""

BASELINE: Schema = {
    **record(
        {
            "schema_version": COUNT,
            "images": mapping(TEXT),
            "scorers": mapping(
                record(
                    {
                        "lower_better": FLAG,
                        "precision": {"enum": ["fp32", "fp16", "bf16"]},
                        "identity": {"type": "object"},
                        "scores": mapping(NUMBER),
                        "failures": mapping(TEXT),
                        "figures": mapping(NUMBER),
                    },
                    {"prompts": TEXTS},
                )
            ),
            "unavailable": mapping(TEXT),
            "versions": mapping(TEXT),
            "date": TEXT,
        },
        {"files": mapping(TEXT), SEAL: TEXT},
    ),
    "additionalProperties": False,
}
"""See :class:`harness.check.snapshot.Snapshot`."""
