"""Labels of every dataset under the same column names, and its images as undecoded bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.data.specs import DatasetSpec

if TYPE_CHECKING:
    import datasets
    import pandas as pd

LABELS = ("file_name", "opinion", "std", "votes", "reference", "distortion", "level", "split")
"""Columns of every opened dataset; those it lacks are empty. Columns for the P-test may follow."""

FULL_REFERENCE = "full_reference_"
"""Prefix of the columns with full-reference qualities, higher better, empty for pristine images."""

_NUMBERS = ("opinion", "std", "votes")


def undecoded(paths: Sequence[str]) -> datasets.Dataset:
    """Image files as a dataset of undecoded images."""
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path} for path in paths]}, features)


def label_table(rows: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> pd.DataFrame:
    """Labels of checked rows under the names of ``LABELS``; what the dataset lacks is empty.

    Returns:
        ``opinion``, ``std`` and ``votes`` float64 (NaN where there are none), ``level`` nullable integer, text.
    """
    import pandas as pd

    columns = {**vars(spec.columns), "file_name": spec.columns.image}
    table = pd.DataFrame({label: [row.get(columns[label]) for row in rows] for label in LABELS})
    for label in _NUMBERS:
        table[label] = pd.to_numeric(table[label]).astype("float64")
    table["level"] = pd.to_numeric(table["level"]).astype("Int64")
    for name in spec.full_reference:
        table[f"{FULL_REFERENCE}{name}"] = pd.to_numeric([row.get(name) or None for row in rows]).astype("float64")
    text = [label for label in LABELS if label not in (*_NUMBERS, "level")]
    return table.assign(**{label: table[label].fillna("").astype(str) for label in text})


def labels_hash(table: pd.DataFrame) -> str:
    """SHA-256 of file names and labels: changes when a figure may change without any new score."""
    text = table.sort_values("file_name").to_csv(index=False, float_format="%.17g")
    return hashlib.sha256(text.encode()).hexdigest()


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """A table of labels that was stored, in the types of :func:`label_table`.

    Raises:
        KeyError: A column is missing.
        ValueError: A column holds something else.
    """
    numbers = [name for name in table.columns if name in _NUMBERS or name.startswith(FULL_REFERENCE)]
    text = [name for name in (*LABELS, "image_hash") if name not in (*_NUMBERS, "level")]
    types = dict.fromkeys(numbers, "float64") | dict.fromkeys(text, "str") | {"level": "Int64"}
    return table[[*LABELS, *(name for name in table.columns if name not in LABELS)]].astype(types)
